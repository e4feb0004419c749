"""Files as they really come: each with the message or the rejects that it must give, and nothing of it lost."""

import dataclasses
import gzip
import io
import json
import os
from dataclasses import dataclass, field

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data.formats import Reading
from tasks.data.importers import Comparison, Reject, import_file
from tasks.data.records import write_jsonl
from tasks.errors import PreflineError

GOOD = {"prompt": "Is it red?", "chosen": "Yes.", "rejected": "No."}
OTHER = {"prompt": "Is it blue?", "chosen": "No.", "rejected": "Yes."}
LINE, OTHER_LINE = json.dumps(GOOD).encode() + b"\n", json.dumps(OTHER).encode() + b"\n"
BOM = b"\xef\xbb\xbf"
CSV = b"prompt,chosen,rejected\nIs it red?,Yes.,No.\n"


def with_(**fields):
    return json.dumps(GOOD | fields).encode() + b"\n"


def without(name):
    return json.dumps({key: text for key, text in GOOD.items() if key != name}).encode() + b"\n"


def parquet(rows):
    file = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), file)
    return file.getvalue()


@dataclass
class File:
    """name, content: of the file. records: how many it gives, with rejects of (line, reason). reading: how it is read."""

    name: str
    content: bytes
    records: int = 0
    rejects: list = field(default_factory=list)
    reading: Reading = Reading()  # noqa: RUF009 - frozen


NEITHER = 'neither a comparison nor a demonstration (no "chosen" and "rejected", no "messages", no "prompt" and "completion")'
NO_ROWS = "holds no rows."
ROWS = {
    "line ends of Windows": File("a.jsonl", (LINE + OTHER_LINE).replace(b"\n", b"\r\n"), 2),
    "a byte order mark": File("a.jsonl", BOM + LINE + OTHER_LINE, 2),
    "byte order marks of files put together": File("a.jsonl", BOM + LINE + BOM + OTHER_LINE, 2),
    "a byte order mark before a list": File("a.json", BOM + json.dumps([GOOD]).encode(), 1),
    "a byte order mark before a table": File("a.csv", BOM + CSV, 1),
    "a list in a file of lines": File("a.jsonl", json.dumps([GOOD, OTHER], indent=1).encode(), 2),
    "lines in a file of a list": File("a.json", LINE + OTHER_LINE, 2),
    "gzip without its name": File("a.jsonl", gzip.compress(LINE + OTHER_LINE), 2),
    "blank lines": File("a.jsonl", b"\n\n" + LINE + b" \t\r\n" + OTHER_LINE + b"\n", 2),
    "emoji and right-to-left text": File("a.jsonl", with_(prompt="🐈‍⬛ שלום \u202eabc", chosen="مرحبا", rejected="🏳️‍🌈"), 1),
    "a null byte in a text": File("a.jsonl", with_(prompt="a\0b"), 1),
    "two formats in one file": File("a.jsonl", LINE + b'{"input_text": "Sky?", "candidate_0": "A", "candidate_1": "B", "choice": 1}\n', 2),
    "an id twice": File("a.jsonl", with_(id="same") + with_(id="same", chosen="Maybe."), 2),
    "a last line cut short": File(
        "a.jsonl",
        LINE + OTHER_LINE[:30],
        1,
        [(2, "not JSON (Unterminated string starting at column 27; no line end follows: was it cut short?)")],
    ),
    "null bytes after a crash": File(
        "a.jsonl", LINE + bytes(512), 1, [(2, "not JSON (Expecting value at column 1; no line end follows: was it cut short?)")]
    ),
    "null bytes in a line": File("a.jsonl", b"\0\0\n" + LINE, 1, [(1, "not JSON (Expecting value at column 1)")]),
    "a raw null byte in a text": File(
        "a.jsonl", LINE.replace(b"red", b"r\0d") + LINE, 1, [(1, "not JSON (Invalid control character at column 20)")]
    ),
    "not a number": File("a.jsonl", with_(strength=float("nan")) + LINE, 1, [(1, 'not JSON ("strength" is NaN, which is no number)')]),
    "not a number in a list": File(
        "a.json", json.dumps([GOOD, GOOD | {"a": {"b": [float("nan")]}}]).encode(), 1, [(2, 'not JSON ("a.b" is NaN, which is no number)')]
    ),
    "infinity": File("a.jsonl", with_(strength=-float("inf")), 0, [(1, 'not JSON ("strength" is -Infinity, which is no number)')]),
    "a number too large": File(
        "a.jsonl", LINE.replace(b"}", b', "strength": 1e999}'), 0, [(1, 'not JSON ("strength" is Infinity, which is no number)')]
    ),
    "a number of 5,000 digits": File(
        "a.jsonl", LINE.replace(b"}", b', "strength": ' + b"7" * 5000 + b"}"), 0, [(1, "not JSON (a number of thousands of digits)")]
    ),
    "half a character": File("a.jsonl", LINE.replace(b"red", b"r\\ud83d") + LINE, 1, [(1, 'half a character ("prompt", at 8)')]),
    "half a character in a list": File(
        "a.json", b"[" + LINE.replace(b"red", b"r\\ud83d") + b"]", 0, [(1, 'half a character ("prompt", at 8)')]
    ),
    "Latin-1": File("a.jsonl", LINE.replace(b"red", b"caf\xe9") + LINE, 1, [(1, "not UTF-8 text (byte 22)")]),
    "Latin-1 in a list": File("a.json", b"[" + LINE.replace(b"red", b"caf\xe9") + b"," + LINE + b"]", 1, [(1, "not UTF-8 text (byte 22)")]),
    "Latin-1 in a table": File("a.csv", CSV + b"Caf\xe9?,Oui.,Non.\n", 1, [(3, "not UTF-8 text")]),
    "half a character as bytes": File("a.jsonl", LINE.replace(b"red", b"\xed\xa0\xbd"), 0, [(1, "not UTF-8 text (byte 19)")]),
    "nested too deeply": File("a.jsonl", b"[" * 100_000 + b"\n" + LINE, 1, [(1, "nested too deeply")]),
    "nested deeply in a field": File(
        "a.jsonl",
        LINE.replace(b"}", b', "x": ' + b"[" * 500 + b"]" * 500 + b"}"),
        0,
        [(1, "nested too deeply (more than 200 lists and objects within each other)")],
    ),
    "a line too long": File("a.jsonl", LINE + b'{"prompt": "' + b"x" * 17_000_000 + b'"}\n' + LINE, 2, [(2, "a line of more than 16 MB")]),
    "Python in place of JSON": File(
        "a.jsonl", str(GOOD).encode() + b"\n", 0, [(1, "not JSON (Expecting property name enclosed in double quotes at column 2)")]
    ),
    "two objects on a line": File("a.jsonl", LINE[:-1] + LINE, 0, [(1, "not JSON (Extra data at column 62)")]),
    "a comma after each line": File("a.jsonl", LINE[:-1] + b",\n" + LINE, 1, [(1, "not JSON (Extra data at column 62)")]),
    "rows that are no objects": File(
        "a.jsonl",
        b'null\n[1, 2]\n17\n"text"\ntrue\n' + LINE,
        1,
        [
            (number, f"the row is {what}, expected an object")
            for number, what in enumerate(("null", "a list", "a number", "text", "true or false"), 1)
        ],
    ),
    "fields that are missing": File(
        "a.jsonl",
        without("rejected") + without("chosen") + b"{}\n",
        0,
        [(1, 'no field "rejected"'), (2, 'no field "chosen"'), (3, NEITHER)],
    ),
    "texts that are empty": File(
        "a.jsonl", with_(prompt=" ") + with_(chosen="") + with_(rejected=[]), 0, [(n, f'"{f}" is empty') for n, f in enumerate(GOOD, 1)]
    ),
    "an object for a text": File("a.jsonl", with_(prompt={"text": "Is it red?"}), 0, [(1, '"prompt" is an object, expected text')]),
    "a number for a text": File("a.jsonl", with_(chosen=4), 0, [(1, '"chosen" is a number, expected text')]),
    "numbers for messages": File("a.jsonl", with_(prompt=[1]), 0, [(1, '"prompt" has a message without "role" and "content" (message 1)')]),
    "a message without words": File(
        "a.jsonl", with_(chosen=[{"role": "assistant", "content": None}]), 0, [(1, '"chosen.content" is null, expected text')]
    ),
    "a number as a label": File("a.jsonl", with_(tie=1), 0, [(1, '"tie" is a number, expected true or false')]),
    "a truth value as a choice": File(
        "a.jsonl",
        b'{"input_text": "Sky?", "candidate_0": "A", "candidate_1": "B", "choice": true}\n',
        0,
        [(1, '"choice" is none of 0, 1 (true or false)')],
    ),
    "a choice that is none": File(
        "a.jsonl",
        b'{"input_text": "Sky?", "candidate_0": "A", "candidate_1": "B", "choice": 2}\n',
        0,
        [(1, '"choice" is none of 0, 1 (2)')],
    ),
    "the wrong format named": File(
        "a.jsonl", LINE, 0, [(1, '"chosen" has no "\\n\\nHuman: " or "\\n\\nAssistant: " in it')], Reading(format="hh-rlhf")
    ),
    "a rated answer alone": File(
        "a.jsonl",
        b'{"prompt": "Sky?", "response": "Blue.", "helpfulness": 4}\n',
        0,
        [(1, "a rated answer without another one to its prompt beside it")],
    ),
    "more cells than columns": File("a.csv", CSV + b"a,b,c,d\n", 1, [(3, "not as many cells as columns (4 cells, 3 columns)")]),
    "fewer cells than columns": File(
        "a.csv", CSV + b'"a\nb",c\n' + CSV[23:], 2, [(3, "not as many cells as columns (2 cells, 3 columns)")]
    ),
    "messages as Python prints them": File(
        "a.csv", CSV + b"\"[{'role': 'user', 'content': 'Sky?'}]\",Blue.,Green.\n", 1, [(3, 'messages that are not JSON ("prompt")')]
    ),
    "messages cut short in a cell": File(
        "a.csv", CSV + b'"[{""role"": ""user"", ""content"": ""Sk",Blue.,Green.\n', 1, [(3, 'messages that are not JSON ("prompt")')]
    ),
    "a table without a header": File("a.csv", CSV[23:] + b"x,y,z\n", 0, [(2, NEITHER)]),
    "missing cells of Parquet": File("a.parquet", parquet([GOOD, GOOD | {"chosen": None}]), 1, [(2, 'no field "chosen"')]),
    "infinity in Parquet": File(
        "a.parquet", parquet([GOOD | {"strength": float("inf")}]), 0, [(1, '"strength" is not a number within a billion')]
    ),
}


@pytest.mark.parametrize("what", ROWS)
def test_rows_that_can_be_read_are_and_the_others_are_rejects(what, tmp_path):
    file = ROWS[what]
    (tmp_path / file.name).write_bytes(file.content)
    found = list(import_file(tmp_path / file.name, file.reading, f"data/{file.name}"))
    rejects = [row for row in found if isinstance(row, Reject)]
    assert [(row.line, row.reason) for row in rejects] == file.rejects
    assert len(found) - len(rejects) == file.records
    assert all(row.source == f"data/{file.name}" for row in found)
    orjson.dumps(found)  # all of it can be written

    if rejects:  # what nobody mended is rejected again, at the same place, and never becomes a record
        write_jsonl(tmp_path / "rejects.jsonl", [dataclasses.asdict(row) for row in rejects])
        again = list(import_file(tmp_path / "rejects.jsonl", file.reading))
        assert [(row.source, row.line) for row in again if isinstance(row, Reject)] == [(row.source, row.line) for row in rejects]
        assert len(again) == len(rejects)


def test_text_of_all_kinds_comes_through_as_it_is(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(ROWS["emoji and right-to-left text"].content + ROWS["a null byte in a text"].content)
    first, second = import_file(tmp_path / "a.jsonl")
    assert isinstance(first, Comparison)
    assert [messages[0]["content"] for messages in (first.prompt, first.chosen, first.rejected)] == ["🐈‍⬛ שלום \u202eabc", "مرحبا", "🏳️‍🌈"]
    assert second.prompt[0]["content"] == "a\0b"


def bomb():
    return gzip.compress(b" " * 10**7) * 14


def damaged_gzip():
    content = bytearray(gzip.compress((LINE + OTHER_LINE) * 400, 0))
    content[9000] ^= 1
    return bytes(content)


REFUSED = {
    "an empty file": ("a.jsonl", b"", NO_ROWS),
    "an empty list": ("a.json", b" [ ] \n", NO_ROWS),
    "an empty file for a list": ("a.json", b"", NO_ROWS),
    "blank lines only": ("a.jsonl", b"\n \n\r\n", NO_ROWS),
    "an empty gzip file": ("a.jsonl.gz", gzip.compress(b""), NO_ROWS),
    "nothing for gzip": ("a.jsonl.gz", b"", NO_ROWS),
    "an empty table": ("a.csv", b"", NO_ROWS),
    "a header only": ("a.csv", CSV[:23], NO_ROWS),
    "an empty Parquet table": ("a.parquet", parquet(pa.table({"prompt": pa.array([], pa.string())})), NO_ROWS),
    "gzip cut short": (
        "a.jsonl.gz",
        gzip.compress(LINE * 50)[:-9],
        "damaged or cut short after line 50 (Compressed file ended before the end-of-stream marker was reached).",
    ),
    "gzip with a changed byte": ("a.jsonl.gz", damaged_gzip(), "damaged or cut short after line"),
    "gzip in name only": ("a.jsonl.gz", LINE, "is not gzip: damaged, or not packed."),
    "a zip bomb": ("a.jsonl.gz", bomb(), "unpacks to more than 200 times its size: no text shrinks like that."),
    "a zip archive": ("a.jsonl", b"PK\x03\x04" + bytes(60), "is a zip archive."),
    "a workbook": ("a.csv", b"PK\x03\x04" + bytes(60), "is a zip archive."),
    "zstd": ("a.json", b"\x28\xb5\x2f\xfd" + bytes(60), "is compressed by zstd."),
    "Parquet under another name": ("a.jsonl", parquet([GOOD]), "is a Parquet file."),
    "text called Parquet": ("a.parquet", LINE, "damaged or no Parquet file, after row 0"),
    "Parquet cut short": ("a.parquet", parquet([GOOD] * 50)[:-100], "damaged or no Parquet file, after row 0"),
    "UTF-16": ("a.jsonl", (LINE + OTHER_LINE).decode().encode("utf-16"), "is text in UTF-16."),
    "UTF-16 without a mark": ("a.jsonl", (LINE + OTHER_LINE).decode().encode("utf-16-be"), "is text in UTF-16."),
    "a table in UTF-16": ("a.csv", CSV.decode().encode("utf-16-le"), "is text in UTF-16."),
    "a pointer to a large file": (
        "a.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "is a pointer of Git LFS, not the file itself.",
    ),
    "a page that asks for a login": ("a.jsonl", b"<!DOCTYPE html>\n<html>\n</html>\n", "is a web page."),
    "a number": ("a.json", b"17", "holds one JSON value, not a list of rows."),
    "lists under names": (
        "a.json",
        json.dumps({"train": [GOOD], "test": [OTHER]}, indent=2).encode(),
        "holds one JSON value, not a list of rows.",
    ),
    "a list cut short": (
        "a.json",
        json.dumps([GOOD, OTHER]).encode()[:-20],
        "line 1, row 2 of the list: not JSON (Expecting property name enclosed in double quotes at character 44 of the row).",
    ),
    "a list that does not end": (
        "a.json",
        b"[\n" + LINE,
        'line 3, row 1 of the list: not JSON (expected "," or "]" after it, found the end of the file).',
    ),
    "a list without a comma": (
        "a.json",
        b"[\n" + LINE + OTHER_LINE + b"]",
        'line 3, row 1 of the list: not JSON (expected "," or "]" after it, found "{").',
    ),
    "a comma too many": (
        "a.json",
        b"[\n" + LINE + b",]",
        "line 3, row 2 of the list: not JSON (Expecting value at character 1 of the row).",
    ),
    "two lists": (
        "a.json",
        json.dumps([GOOD]).encode() + b"\n" + json.dumps([OTHER]).encode(),
        "line 2: more follows after the end of the list (row 1 was its last).",
    ),
    "a list nested too deeply": ("a.json", b"[" * 100_000, "line 1, row 1 of the list: not JSON (nested too deeply)."),
    "a quote that does not end": ("a.csv", CSV + b'"Is it blue?,No.,Yes.\n' + CSV[23:], "line 3: not CSV (unexpected end of data)."),
    "text after a quote": ("a.csv", CSV + b'"Is it" blue?,No.,Yes.\n', "line 3: not CSV (',' expected after '\"')."),
    "a cell too long": ("a.csv", CSV + b"x" * 17_000_000, "line 3: not CSV (a line of more than 16 MB)."),
    "semicolons": ("a.csv", b"prompt;chosen;rejected\na;b;c\n", "line 1: the header has one column (prompt;chosen;rejected)."),
    "two columns of one name": ("a.csv", b"prompt,chosen,chosen\na,b,c\n", 'line 1: two columns are called "chosen".'),
    "another kind of file": ("a.xlsx", b"PK", "not a kind of file that Prefline knows."),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_by_name(what, tmp_path):
    name, content, message = REFUSED[what]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PreflineError) as refused:
        list(import_file(tmp_path / name, name=f"data/{name}"))
    assert refused.value.what.startswith(f"data/{name}")
    assert message in refused.value.what
    assert refused.value.advice
    assert len(str(refused.value)) < 400


def test_paths_that_hold_no_data_are_refused_by_name(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link.jsonl").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in [
        ("gone.jsonl", "no such file or folder"),
        ("a.jsonl", "no data file in this folder"),
        ("out", "the link link.jsonl leads out of this folder"),
        ("pipe.jsonl", "is not a file"),
    ]:
        with pytest.raises(PreflineError, match=message) as refused:
            list(import_file(tmp_path / name, name=name))
        assert refused.value.what.startswith(name)


def test_a_format_that_does_not_exist_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINE)
    with pytest.raises(PreflineError, match='"vertx" is no format that Prefline knows'):
        list(import_file(tmp_path / "a.jsonl", Reading(format="vertx")))


def test_there_are_many_kinds_of_bad_files():
    assert len(ROWS) + len(REFUSED) >= 80
