"""One stage in several processes: the work is done once, and a killed one leaves its lock and its checkpoint behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, time
from pathlib import Path
from tasks.config import PipelineConfig
from tasks.stage import Context, stage

folder = Path(sys.argv[1])

@stage("slow", reads=(), package="training")
def slow(config, *, run):
    with (folder / "log").open("a") as log:
        log.write("worked\\n")
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / "at").touch()
    print("working", flush=True)
    while not (folder / "go on").exists():
        time.sleep(0.01)
    (run.out / "file").write_text("done")
    return {}

print("result", slow.run(PipelineConfig(), {}, Context(folder, folder / "runs")).skipped or "done", flush=True)
"""


def child(folder):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_processes_that_need_one_result_do_the_work_once(tmp_path):
    first = child(tmp_path)
    assert first.stdout.readline() == "working\n"
    second = child(tmp_path)
    assert "another run is working on slow" in second.stdout.readline()
    (tmp_path / "go on").touch()
    assert [process.communicate(timeout=60)[0] for process in (first, second)] == ["result done\n", "result unchanged\n"]
    assert (tmp_path / "log").read_text() == "worked\n"


def test_a_killed_process_gives_up_its_lock_and_leaves_its_checkpoint(tmp_path):
    first = child(tmp_path)
    assert first.stdout.readline() == "working\n"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()
    (tmp_path / "go on").touch()
    assert child(tmp_path).communicate(timeout=60)[0].splitlines() == ["working", "result done"]
    assert (tmp_path / "log").read_text() == "worked\n" * 2
    (folder,) = [path for path in (tmp_path / "runs" / "stages" / "slow").iterdir() if path.is_dir()]
    assert sorted(path.name for path in folder.iterdir()) == ["file", "manifest.json"]
