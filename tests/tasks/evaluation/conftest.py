"""Made-up evidence: answers with scores and rounds, honest or hacked; results for the stage; a server that chats."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tasks.data.dvc_store import folder_md5
from tasks.data.records import Comparison, assistant, user, write_jsonl
from tasks.data.snapshot import Snapshot
from tasks.evaluation.agreement import Agreement, HumanPairs, agreement
from tasks.evaluation.answers import Judged, Reply
from tasks.evaluation.findings import Evidence
from tasks.evaluation.judges import speakers
from tasks.evaluation.judges.judge import verdict
from tasks.evaluation.overoptimisation import Round, Rounds, Scores
from tasks.evaluation.rows import verdict_of_gold
from tasks.stage import StageResult
from tasks.training.intervals import Bootstrap
from tasks.training.models import RewardModel, save

BOOTSTRAP = Bootstrap(resamples=400)
QUESTIONS = [f"How warm is the {item}?" for item in ("lamp", "kettle", "chair", "desk", "clock", "mirror", "rug", "shelf", "vase", "fan")]


@pytest.fixture
def make_rounds():
    """make_rounds(judge_ends_at, chosen) -> seven rounds whose own reward climbs to 2 sd and whose judge goes elsewhere."""

    def make(judge_ends_at=1.5, chosen=60, prompts=120, seed=0):
        rng = np.random.default_rng(seed)
        start = [rng.normal(size=prompts) for _ in range(3)]
        rounds = []
        for number in range(0, 70, 10):
            way = number / 60
            rise = [2.0 * way, judge_ends_at * way, judge_ends_at * way]
            own, judge, gold = (start[i] + rise[i] + 0.5 * rng.normal(size=prompts) * (number > 0) for i in range(3))
            rounds.append(Round(number, 6.0 * way**2, Scores(own, judge, gold)))
        return Rounds(chosen, rounds)

    return make


@pytest.fixture
def make_rows():
    """make_rows(gain, ...) -> judged prompts on which the policy is better than SFT by `gain` standard deviations."""

    def make(gain=0.8, prompts=120, seed=0, truth=True, champion=False, tags=("price", "policy", "refuse")):
        rng = np.random.default_rng(seed)

        def reply(name, place, lift):
            quality = rng.normal() + lift
            return Reply(
                text=f"{name} says: the lamp number {place} costs {rng.integers(5, 60)} euros. Happy to help!",
                length=int(rng.integers(6, 16)),
                stopped=bool(rng.random() < 0.97),
                own=quality + 0.4 * rng.normal(),
                judge=quality + 0.5 * rng.normal(),
                gold=round(quality * 2) / 2 if truth else None,
                right=bool(quality > 0) if truth else None,
            )

        rows = []
        for place in range(prompts):
            policy, sft = reply("Policy", place, gain), reply("SFT", place, 0.0)
            baseline = reply("Champion", place, 0.5 * gain) if champion else None
            rival = baseline or sft
            rows.append(
                Judged(
                    prompt=[user(f"How much is the lamp number {place}?")],
                    group_id=f"group {place}",
                    tags=[tags[place % len(tags)]],
                    policy=policy,
                    sft=sft,
                    baseline=baseline,
                    judge=verdict(policy, rival, policy.judge, rival.judge),
                    judge_over_sft=verdict(policy, sft, policy.judge, sft.judge),
                    gold=verdict_of_gold(policy, rival),
                    gold_over_sft=verdict_of_gold(policy, sft),
                )
            )
        return rows

    return make


@pytest.fixture
def make_scorer():
    """make_scorer(too_sure) -> what a scorer reaches on 600 pairs of 100 prompts whose margins are that many times too large."""

    def make(too_sure=1.0, seed=3) -> Agreement:
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=1200) * 1.2
        first, second = np.arange(600), np.arange(600, 1200)
        swapped = rng.random(600) > 1 / (1 + np.exp(-(scores[first] - scores[second])))
        chosen, rejected = np.where(swapped, second, first), np.where(swapped, first, second)
        pairs = HumanPairs(chosen.tolist(), rejected.tolist(), [9] * 600, [8, 10] * 300, [f"group {i % 100}" for i in range(600)])
        return agreement(scores * too_sure, pairs, BOOTSTRAP)

    return make


@pytest.fixture
def make_evidence(make_rows, make_rounds, make_scorer):
    def make(rows=None, rounds=None, baseline="SFT model", version=None):
        return Evidence(
            rows=rows or make_rows(),
            rounds=rounds or make_rounds(),
            too_long=0,
            kl=5.4,
            judge=make_scorer(),
            reward_model=make_scorer(too_sure=2.0, seed=4),
            prefer_longer=0.5,
            pairs=600,
            baseline=baseline,
            baseline_version=version,
        )

    return make


# The stage --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def line(tmp_path, make_llama, tokenizer):
    """line(...) -> what the stages before evaluate left behind, by name."""

    def result(name):
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        return StageResult(stage=name, key=name, path=path, digest=name, metrics={}, seconds=0.0)

    def make(test_prompts=10, champion=None, policy_seed=1, ties=False, questions=QUESTIONS, shop=None):
        found = {name: result(name) for name in ("data", "sft", "reward_model", "judge", "policy", "baseline")}
        for name, seed in (("sft", 0), ("policy", policy_seed)):
            save(make_llama(len(tokenizer), seed), tokenizer, found[name].path / "model")
        for name, seed in (("reward_model", 2), ("judge", 3)):
            RewardModel.from_policy(found["sft"].path / "model", seed).save(tokenizer, found[name].path / "model")
        rounds = [a_round(number) for number in (0, 5)]
        (found["policy"].path / "rounds.json").write_text(json.dumps({"chosen_round": 5, "validation_prompts": 9, "rounds": rounds}))
        name, version = ("champion, version 2", "2") if champion else ("SFT model", None)
        (found["baseline"].path / "baseline.json").write_text(json.dumps({"name": name, "version": version, "model_digest": None}))
        if champion:
            save(champion[0], champion[1], found["baseline"].path / "model")
        write_data(tmp_path, found["data"], questions, test_prompts, ties, shop)
        return found

    return make


def a_round(number):
    own, judge = np.random.default_rng(number).normal(size=(2, 9)).tolist()
    return {"round": number, "kl": float(number), "length": 8.0, "stopped": 1.0, "own": own, "judge": judge, "gold": None}


def write_data(root, data, questions, test_prompts, ties, shop):
    folder = root / "prepared"
    folder.mkdir()
    comparisons = [
        Comparison(
            id=f"{place} {turn}",
            prompt=[user(question)],
            chosen=[assistant("It is warm.")],
            rejected=[assistant("Sorry." if turn else "I can't help with that.")],
            source="shop",
            source_id="1",
            group_id=question,
            tie=ties,
            split="test" if place < test_prompts else "validation",
            tags=["warmth"],
        )
        for place, question in enumerate(questions)
        for turn in range(2)
    ]
    write_jsonl(folder / "comparisons.jsonl", comparisons)
    write_jsonl(folder / "demonstrations.jsonl", [])
    if shop:
        shop.save(folder / "gold.json")
    seen = Snapshot(
        folder=Path("prepared"),
        md5=folder_md5(folder),
        comparisons=len(comparisons),
        demonstrations=0,
        rejects=0,
        splits={"test": 2 * test_prompts},
    )
    (data.path / "snapshot.json").write_text(seen.model_dump_json())


# A server with a language model -----------------------------------------------------------------------------------------


def longer(first, second):
    """A judge without bias: who says more wins."""
    return "Verdict: TIE" if len(first) == len(second) else f"Both are fine.\nVerdict: {'A' if len(first) > len(second) else 'B'}\n"


class Completions(BaseHTTPRequestHandler):
    """server.judge(first, second) -> a reply. server.says: replies, (status, text, headers), that come before any other."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, body, self.headers, time.monotonic()))
            scripted = self.server.says.pop(0) if self.server.says else None
        time.sleep(self.server.delay)
        _, first, second = body["messages"][0]["content"].split("|")
        said = {"choices": [{"message": {"role": "assistant", "content": self.server.judge(first, second)}}]}
        if self.server.counts:
            said["usage"] = {"total_tokens": 10}
        status, text, headers = scripted or (200, json.dumps(said), {})
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:  # the other side has gone
            pass

    def log_message(self, *_): ...


@contextmanager
def chatting():
    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as serving:
        serving.judge, serving.seen, serving.says, serving.lock = longer, [], [], threading.Lock()
        serving.delay, serving.counts = 0.0, True
        serving.url = f"http://127.0.0.1:{serving.server_port}/v1"
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture
def chat_server(monkeypatch):
    """A language model that is asked with the template "{prompt}|{first}|{second}"."""
    monkeypatch.setattr(speakers, "WAITS", (0.0, 0.01))
    monkeypatch.delenv(speakers.KEY, raising=False)
    with chatting() as serving:
        yield serving


@pytest.fixture
def other_chat_server():
    with chatting() as serving:
        yield serving


class Watcher:
    """Notes how far a stage says it is."""

    def __init__(self):
        self.progress = []

    def started(self, *_): ...
    def finished(self, *_): ...
    def failed(self, *_): ...
    def progressed(self, stage, done, total, metrics):
        self.progress.append((done, total))


@pytest.fixture
def watcher():
    return Watcher()
