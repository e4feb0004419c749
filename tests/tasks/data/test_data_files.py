import contextlib
import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import json_rows
from tasks.data.files import files, rows
from tasks.data.json_rows import Broken
from tasks.errors import PreflineError

ROOT = Path(__file__).parents[3]
ROWS = [{"prompt": "Is it red?", "n": 1}, {"prompt": 'A "quoted",\ntwo-line 猫 🐈 text', "n": 2.5}, {"prompt": "x", "tags": ["a", "b"]}]


def read(path):
    return list(rows(path, path.name))


def written(path, content):
    path.write_bytes(content)
    return path


def lines_of(values, end="\n"):
    return "".join(json.dumps(row) + end for row in values).encode()


# The same rows, whatever the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines_of(ROWS)),
        ("crlf.jsonl", lines_of(ROWS, "\r\n")),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines_of(ROWS)),
        ("UPPER.JSONL", lines_of(ROWS)),
        ("no-end.jsonl", lines_of(ROWS)[:-1]),
        ("list.json", json.dumps(ROWS).encode()),
        ("indented.json", json.dumps(ROWS, indent=2).encode()),
        ("bom.json", b"\xef\xbb\xbf \n" + json.dumps(ROWS, ensure_ascii=False).encode()),
        ("lines.json", lines_of(ROWS)),
        ("list.jsonl", json.dumps(ROWS, indent=2).encode()),
        ("a.jsonl.gz", gzip.compress(lines_of(ROWS))),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("parts.jsonl.gz", gzip.compress(lines_of(ROWS[:1])) + gzip.compress(lines_of(ROWS[1:]))),
        ("gzip-by-content.jsonl", gzip.compress(lines_of(ROWS))),
    ],
)
def test_the_same_rows_in_every_kind_of_json(tmp_path, name, content):
    assert read(written(tmp_path / name, content)) == list(enumerate(ROWS, 1))


def test_lines_are_counted_as_an_editor_does(tmp_path):
    path = written(tmp_path / "a.jsonl", b'\n{"a": 1}\n \r\n\xef\xbb\xbf{"a": 2}\nnot\n{"a": 3}')
    found = read(path)
    assert [number for number, _ in found] == [2, 4, 5, 6]
    assert [row for _, row in found if not isinstance(row, Broken)] == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_csv_has_text_json_where_it_fits_and_no_empty_cells(tmp_path):
    messages = [{"role": "user", "content": 'A, "b"\nc'}]
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as out:
        table = csv.writer(out)
        table.writerow(["", "prompt", "chosen", "tags", "extra", "tie"])
        table.writerow([0, json.dumps(messages), "[1, 2]", '["a"]', '{"b": 1}', "false"])
        table.writerow([1, "two\nlines 🐈", '{"json": "said"}', "", "[not json", ""])
        table.writerow([])
        table.writerow([2, "[]", "x", "", "", "true"])
    assert read(path) == [
        (2, {"prompt": messages, "chosen": "[1, 2]", "tags": ["a"], "extra": {"b": 1}, "tie": "false"}),
        (3, {"prompt": "two\nlines 🐈", "chosen": '{"json": "said"}', "extra": "[not json"}),
        (6, {"prompt": "[]", "chosen": "x", "tie": "true"}),
    ]


def test_parquet_gives_json_and_no_empty_cells(tmp_path):
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "messages": [[{"role": "user", "content": "x"}], None],
            "score": [float("nan"), 2.0],
            "when": [datetime(2026, 11, 1, 10, tzinfo=UTC), None],
            "price": [Decimal("1.50"), None],
            "raw": [b"caf\xe9", None],
            "slice": pa.array(["s", None]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [
        (
            1,
            {
                "prompt": "a",
                "messages": [{"role": "user", "content": "x"}],
                "when": "2026-11-01T10:00:00+00:00",
                "price": 1.5,
                "raw": "caf\\xe9",
                "slice": "s",
            },
        ),
        (2, {"prompt": "b", "score": 2.0}),
    ]


# Any content --------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(values=st.lists(JSON, min_size=1, max_size=5), indent=st.sampled_from([None, 0, 2]), ascii=st.booleans())
def test_a_list_is_read_as_json_reads_it(values, indent, ascii, tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "a.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    assert read(path) == list(enumerate(values, 1))


@given(values=st.lists(JSON, min_size=1, max_size=6), chunk=st.integers(1, 30), indent=st.sampled_from([None, 1]))
def test_a_list_may_be_cut_anywhere_between_two_reads(values, chunk, indent):
    old, json_rows.CHUNK = json_rows.CHUNK, chunk
    try:
        found = list(json_rows.items(io.BytesIO(json.dumps(values, indent=indent, ensure_ascii=False).encode()), "a.json"))
    finally:
        json_rows.CHUNK = old
    assert found == list(enumerate(values, 1))


@given(table=st.lists(st.lists(TEXT.filter(lambda cell: cell[:1] not in ("[", "{")), min_size=2, max_size=2), min_size=1, max_size=5))
def test_csv_is_read_as_it_was_written(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["a", "b"], *table])
    expected = [{name: cell for name, cell in zip("ab", row, strict=True) if cell} for row in table]
    assert [row for _, row in read(path)] == expected


@given(content=st.binary(min_size=1, max_size=200))
def test_any_bytes_give_rows_or_one_clear_error(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.gz"):
        for whole in (content, gzip.compress(content) if name.endswith(".gz") else b'[{"a": "' + content):
            with contextlib.suppress(PreflineError):
                for _, row in rows(written(folder / name, whole), name):
                    json.dumps(row.row if isinstance(row, Broken) else row, ensure_ascii=False).encode("utf-8")


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_of_parquet_or_gzip_is_a_clear_error_or_other_rows(at, byte, tmp_path_factory):
    folder = tmp_path_factory.mktemp("changed")
    pq.write_table(pa.Table.from_pylist([{"prompt": f"text {n}", "tags": ["a", None]} for n in range(20)]), folder / "a.parquet")
    written(folder / "a.jsonl.gz", gzip.compress(lines_of(ROWS * 5)))
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        content[at % len(content)] = byte
        written(path, content)
        with contextlib.suppress(PreflineError):
            read(path)


# Which files --------------------------------------------------------------------------------------------------------


def names_in(folder, name="mine/"):
    return [label for _, label in files(folder, name)]


def test_a_folder_gives_its_data_files_in_order_without_hidden_ones(tmp_path):
    for name in ("b.jsonl", "a.json", "deep/c.csv", "deep/er/d.parquet", ".hidden/e.jsonl", ".f.jsonl", "notes.txt", "z.JSONL.GZ"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names_in(tmp_path) == ["mine/a.json", "mine/b.jsonl", "mine/deep/c.csv", "mine/deep/er/d.parquet", "mine/z.JSONL.GZ"]


def test_links_within_the_folder_are_read_once_and_loops_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "y.jsonl").symlink_to(tmp_path / "a" / "x.jsonl")
    assert names_in(tmp_path) == ["mine/a/x.jsonl", "mine/y.jsonl"]


@pytest.mark.parametrize("what", ["file", "folder", "nothing"])
def test_a_link_that_leads_out_of_the_folder_is_refused_by_name(tmp_path, what):
    (tmp_path / "given").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.jsonl").write_text("{}\n")
    target = {"file": "secret/s.jsonl", "folder": "secret", "nothing": "gone.jsonl"}[what]
    (tmp_path / "given" / "out.jsonl").symlink_to(tmp_path / target)
    with pytest.raises(PreflineError, match=r"mine/: the link out\.jsonl leads out of this folder, to .*" + target):
        names_in(tmp_path / "given")


def test_a_link_that_is_itself_given_is_followed(tmp_path):
    written(tmp_path / "real.jsonl", lines_of(ROWS))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert len(read(tmp_path / "link.jsonl")) == 3


def test_names_of_any_bytes_and_links_to_nothing(tmp_path):
    written(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), lines_of(ROWS))
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    assert names_in(tmp_path) == ["mine/caf\\xe9.jsonl", "mine/loop.jsonl"]
    with pytest.raises(PreflineError, match="a link to nothing"):
        read(tmp_path / "loop.jsonl")
    with pytest.raises(PreflineError, match="can't be read: File name too long"):
        files(tmp_path / ("x" * 300 + ".jsonl"), "x")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(PreflineError, match="is not a file"):
        read(tmp_path / "pipe.jsonl")


# Size ---------------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from tasks.data.files import rows

def peak():  # of this process; getrusage would begin with what the process before it had
    return next(int(line.split()[1]) // 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))

for _ in rows(Path(sys.argv[1]), "warm"):
    pass
before = peak()
count = sum(1 for _ in rows(Path(sys.argv[2]), "large"))
print(count, peak() - before)
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    """A file of 54 MB (27 where it is gzip) costs hardly more than one of 2 MB."""
    sizes = {}
    for name, count in (("small", 2_000), ("large", 60_000)):
        path = tmp_path / (name + suffix)
        made = ({"prompt": random.Random(n).randbytes(450).hex(), "chosen": "yes", "rejected": "no"} for n in range(count))
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(made)), path)
        elif suffix == ".csv":
            with path.open("w", newline="") as out:
                table = csv.DictWriter(out, ["prompt", "chosen", "rejected"])
                table.writeheader()
                table.writerows(made)
        elif suffix == ".json":
            path.write_text("[" + ",\n".join(json.dumps(row) for row in made) + "]")
        else:
            with gzip.open(path, "wb", 1) if suffix.endswith(".gz") else path.open("wb") as out:
                out.writelines(json.dumps(row).encode() + b"\n" for row in made)
        sizes[name] = path
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, sizes["small"], sizes["large"]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 60_000
    assert grown <= 20


def test_a_line_of_50_mb_is_read_over_without_holding_it(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as out:
        out.write(lines_of(ROWS[:1]) + b'{"prompt": "')
        for _ in range(50):
            out.write(b"x" * 10**6)
        out.write(b'"}\n' + lines_of(ROWS[1:]))
    tracemalloc.start()
    found = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 10**6
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert found[1][1].reason == "a line of more than 16 MB"
    assert found[1][1].row == '{"prompt": "' + "x" * 488


def test_a_bomb_is_refused_and_a_long_plain_text_is_not(tmp_path):
    packed = gzip.compress(b" " * 10**7)
    bomb = written(tmp_path / "bomb.jsonl.gz", packed * 14)
    with pytest.raises(PreflineError, match=r"bomb\.jsonl\.gz unpacks to more than 200 times its size"):
        read(bomb)
    assert read(written(tmp_path / "small.jsonl.gz", packed + gzip.compress(b"{}"))) == [(1, {})]  # far denser, but small
