"""Files that others made or damaged: one sentence and nothing written, whatever the library below does with them."""

import gzip
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import formats, sources, streams
from data_prep.__main__ import main
from data_prep.formats import read_table
from data_prep.isolation import isolated
from data_prep.tokens import text_chunks
from nanoegg_mlx.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def refused(path: Path, capfd: pytest.CaptureFixture, *options: str) -> str:
    """The one line that `--train path` ends with; nothing may be left on disk."""
    out = path.parent / "refused"
    assert main(["--train", str(path), "--out", str(out), *options]) == 2
    stdout, line = capfd.readouterr()
    assert line.startswith("error: ") and line.endswith(".\n") and line.count("\n") == 1 and stdout == ""
    assert not out.exists()
    return line


def tokens_of(path: Path, *options: str) -> bytes:
    out = path.parent / "out"
    assert main(["--train", str(path), "--out", str(out), "--force", "--quiet", *options]) == 0
    return np.load(out / "local_train.npy").tobytes()


GOOD = b'{"text": "a"}\n'
LINES = {
    b"null": "it has null, not a JSON object",
    b"[1]": "it has an array, not a JSON object",
    b'"x"': "it has a string, not a JSON object",
    b"7": "it has a number, not a JSON object",
    b"true": "it has a boolean, not a JSON object",
    b"junk": "it is not a JSON object",
    b"\xff": "it is not a JSON object",
    b'{"text": "b"}{"text": "c"}': "more than one JSON value on the line",
    b'{"text": "b"} null {"text": "c"}': "more than one JSON value on the line",
    b'{"text": "b", "text": "c"}': "specified twice",
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("row", [0, 1, 40, 41])
def test_a_line_that_is_no_object_has_the_same_answer_anywhere(tmp_path, monkeypatch, capfd, line, row):
    """Rows 0 and 40 begin a block. Arrow's reader ends the process for a row `null` there."""
    monkeypatch.setattr(formats, "CHUNK_BYTES", 40 * len(GOOD))
    monkeypatch.setattr(streams, "CHUNK_BYTES", 40 * len(GOOD))
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD * row + line + b"\n" + GOOD * 50)
    message = refused(path, capfd)
    if not (line == b"[1]" and row == 0):
        assert f"broken in row {row} (counted from 0; " in message and LINES[line] in message
    assert "it must have one JSON object on each line" in message


@pytest.mark.parametrize(
    ("content", "look"),
    [
        (b'{\n  "text": "a"\n}\n', "JSON over several lines (pretty-printed)"),
        (b'{"text": "a",\n "id": 1}\n', "JSON over several lines (pretty-printed)"),
        (b'[{"text": "a"}, {"text": "b"}]\n', "a JSON array"),
        (b'[\n{"text": "a"}]\n', "a JSON array"),
        (b"PAR1....", "a Parquet file"),
        (gzip.compress(GOOD, mtime=0), "a gzip file"),
        (b"<html>\n", "XML or HTML"),
    ],
)
@pytest.mark.parametrize("block", [8, 1 << 22])
def test_other_kinds_of_file_are_recognised(tmp_path, monkeypatch, capfd, content, look, block):
    monkeypatch.setattr(formats, "CHUNK_BYTES", block)
    (tmp_path / "a.jsonl").write_bytes(content)
    assert f"a.jsonl looks like {look}; it must have one JSON object on each line" in refused(
        tmp_path / "a.jsonl", capfd
    )


@pytest.mark.parametrize("first", [b'{"n": -NaN}', b'{"n": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"n": 1}', b"{}"])
def test_a_missing_key_is_found_in_any_file(tmp_path, monkeypatch, capfd, first):
    path = tmp_path / "a.jsonl"
    path.write_bytes(first + b"\n" + b'{"n": 2}\n' * 20)
    assert "has no column 'text'" in refused(path, capfd)
    # The key may appear late, in whichever block.
    monkeypatch.setattr(formats, "CHUNK_BYTES", 20)
    path.write_bytes(first + b"\n" + b'{"n": 2}\n' * 20 + GOOD)
    assert tokens_of(path) == b"\0a"


def test_marks_blank_lines_and_carriage_returns(tmp_path, capfd):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  {"text": "b"}  \n\n{"text": "c"}')
    assert tokens_of(path) == b"\0a\0b\0c"
    path.write_bytes(b"\xef\xbb\xbf")
    assert "no documents" in refused(path, capfd)


def test_a_column_with_a_dot_is_not_a_field_of_a_struct(tmp_path):
    table = pa.table({"a": [{"b": "nested"}] * 2, "a.b": ["p", "q"], "c": [1, 2]})
    for order in (["a", "a.b", "c"], ["a.b", "c", "a"]):
        pq.write_table(table.select(order), tmp_path / "a.parquet")
        assert tokens_of(tmp_path / "a.parquet", "--column", "a.b") == b"\0p\0q"


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_field_of_a_struct_is_a_column_if_no_other_has_its_name(tmp_path, capfd, ending):
    def write(table: pa.Table) -> Path:
        path = tmp_path / f"a.{ending}"
        if ending == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_file(path, table.schema) as file:
                file.write_table(table)
        return path

    rows = [{"b": "p", "c": [1, 2]}, None, {"b": None, "c": None}, {"b": "q", "c": []}]
    before = {"tags": [["x"]] * 4, "map": pa.array([[("k", 1)]] * 4, pa.map_(pa.string(), pa.int64())), "id": range(4)}
    path = write(pa.table({**before, "a": rows}))
    assert tokens_of(path, "--column", "a.b") == b"\0p\0q"
    assert "no column 'a.d'" in refused(path, capfd, "--column", "a.d")
    assert "has list<" in refused(path, capfd, "--column", "a.c")
    deep = [{"b.c": "first", "b": {"c": "second"}}]
    assert "more than one column 'a.b.c'" in refused(write(pa.table({"a": deep})), capfd, "--column", "a.b.c")
    path = write(pa.table({"a": [{"b": {"c": "deep"}}], "a.b": [{"d": "x"}]}))
    assert tokens_of(path, "--column", "a.b.c") == b"\0deep"


def test_a_key_of_an_object_is_a_column_if_no_other_has_its_name(tmp_path, monkeypatch, capfd):
    path = tmp_path / "a.jsonl"

    def write(*rows: object) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    rows = [{"a": {"b": "p", "c": 1}}, {"a": None}, {"x": 1}, {"a": {"b": None}}, {"a": {"c": 2}}, {"a": {"b": "q"}}]
    for size in (10, 1 << 22):
        monkeypatch.setattr(formats, "CHUNK_BYTES", size)
        assert tokens_of(write(*rows), "--column", "a.b") == b"\0p\0q"
        assert "more than one column 'a.b'" in refused(write(*rows, {"a.b": "r"}), capfd, "--column", "a.b")
        both = write({"a.b": "p", "a": {"b": "nested"}}, {"a": {"b": "nested"}}, {"a.b": "q"})
        assert tokens_of(both, "--column", "a.b") == b"\0p\0q"
    assert tokens_of(write({"a": {"b.c": "p"}}), "--column", "a.b.c") == b"\0p"
    assert "more than one" in refused(write({"a": {"b.c": "p", "b": {"c": "q"}}}), capfd, "--column", "a.b.c")
    assert "has no column 'a.d'" in refused(path, capfd, "--column", "a.d")
    for other, kind in (({"b": 7}, "a number"), ("p", "a string"), ([], "an array")):
        message = refused(write({"a": {"b": "p"}}, {"a": other}), capfd, "--column", "a.b")
        assert f"has {kind}, not text, under 'a.b' in row 1 (counted from 0)" in message


def parquet(**options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": range(40), "text": ["some text"] * 40}), file, **options)
    return file.getvalue()


def arrow(column: pa.Array) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_file(file, pa.schema([("text", column.type)])) as writer:
        writer.write_batch(pa.record_batch({"text": column}))
    return file.getvalue()


def test_every_byte_of_parquet_metadata_may_be_damaged(tmp_path, capfd):
    """Each in turn has a bit flipped, or is 255. A file is read as it was or refused."""
    whole = parquet(compression="snappy")
    size = int.from_bytes(whole[-8:-4], "little")
    path, out = tmp_path / "a.parquet", tmp_path / "out"
    generator = np.random.default_rng(0)
    for position in generator.choice(np.arange(len(whole) - 8 - size, len(whole)), 60, replace=False):
        damaged = bytearray(whole)
        damaged[position] = 255 if generator.integers(2) else damaged[position] ^ (1 << generator.integers(8))
        path.write_bytes(damaged)
        code = main(["--train", str(path), "--out", str(out), "--force", "--quiet"])
        error = capfd.readouterr().err
        assert (code, error) == (0, "") or (code == 2 and error.startswith("error: ") and error.count("\n") == 1)
        assert not list(out.glob(".*.partial"))


@pytest.mark.parametrize("damage", ["index", "offset", "view"])
def test_arrow_values_outside_their_data(tmp_path, capfd, damage):
    words = pa.array(["first", "second", "third and long enough"])
    if damage == "index":
        content = arrow(pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 0x5A5A], pa.int32()), words, safe=False))
    elif damage == "offset":
        content = arrow(words).replace(np.array([5, 11], "<i4").tobytes(), np.array([5, 1 << 30], "<i4").tobytes())
    else:
        content = arrow(words.cast(pa.string_view()))
        content = content.replace(b"thir" + bytes(4), b"thir" + b"\xff\xff\xff\x7f")
        content = content.replace(b"thir" + (0).to_bytes(4, "little"), b"thir" + (99).to_bytes(4, "little"))
    (tmp_path / "a.arrow").write_bytes(content)
    if damage == "view" and b"thir" + b"\xff\xff\xff\x7f" not in content:
        pytest.skip("the layout of views differs")
    assert "a.arrow cannot be read (" in refused(tmp_path / "a.arrow", capfd)


def test_a_buffer_of_offsets_that_ends_within_one():
    buffers = [None, pa.py_buffer(np.array([0, 1, 3], "<i4").tobytes() + b"\x07"), pa.py_buffer(b"abb")]
    (chunk,) = text_chunks(pa.Array.from_buffers(pa.string(), 2, buffers))
    assert chunk.to_pylist() == ["a", "bb"]


@pytest.mark.parametrize("error", [ValueError, TypeError, IndexError, ZeroDivisionError, MemoryError, pa.ArrowKeyError])
def test_an_error_of_the_library_is_one_sentence(tmp_path, monkeypatch, capfd, error):
    def fail(*_: object) -> None:
        raise error("some reason\nand more")

    monkeypatch.setattr(formats, "_arrays", fail)
    (tmp_path / "a.arrow").write_bytes(b"x")
    assert "a.arrow cannot be read (" in refused(tmp_path / "a.arrow", capfd)


@pytest.mark.parametrize("death", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGFPE])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl"])
def test_a_death_inside_the_library_is_one_sentence(tmp_path, monkeypatch, capfd, death, name):
    def die(*_: object, **__: object) -> None:
        os.write(2, b"terminate called after throwing an instance of 'parquet::ParquetException'\n")
        os.kill(os.getpid(), death)

    monkeypatch.setattr(sources, "read_table", die)
    (tmp_path / name).write_bytes(GOOD)
    message = refused(tmp_path / name, capfd)
    assert message.startswith(f"error: The file {tmp_path / name} cannot be read (the library that reads it failed); ")


def test_work_in_a_child_returns_and_raises(capfd):
    def fail(announce: Callable[[str], None]) -> None:
        os.write(2, b"from the library\n")
        raise InputError("A sentence.")

    assert isolated(lambda announce: [1, "two"]) == [1, "two"]
    with pytest.raises(InputError, match=r"^A sentence\.$"):
        isolated(fail)
    assert capfd.readouterr().err == "from the library\n"
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        isolated(lambda announce: 1 // 0)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(tmp_path, start, stop):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    program = (
        "import os, sys, time; from data_prep import sources as s\n"
        "from data_prep.__main__ import main\n"
        "def wait(*_):\n"
        "    print(os.getpid(), flush=True); time.sleep(60); yield\n"
        "s.read_table = wait; sys.exit(main(sys.argv[1:]))\n"
    )
    process = start("-c", program, "--train", tmp_path / "a.jsonl", "--out", tmp_path / "out")
    child = int(process.stdout.readline())
    assert child != process.pid
    process.send_signal(stop)
    _, err = process.communicate(timeout=30)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    if stop == signal.SIGINT:
        assert (process.returncode, err) == (130, "Interrupted; no cache was made.\n")
        assert not (tmp_path / "out").exists()


def pad(content: bytes) -> bytes:
    return content + bytes(700_000)


COMPRESS = {".gz": gzip.compress, ".zst": zstd.compress}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_compressed_files_must_be_whole(tmp_path, capfd, ending, kind):
    path = tmp_path / f"a.{kind}{ending}"
    whole = COMPRESS[ending](GOOD * 2000)
    for size in (0, 1, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert f"a.{kind}{ending} " in refused(path, capfd)
    path.write_bytes(whole + b"x" * 9)
    refused(path, capfd)


@pytest.mark.parametrize("ending", COMPRESS)
def test_several_members_are_read_and_remarked_on(tmp_path, capfd, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(b"".join(COMPRESS[ending](GOOD) for _ in range(3)))
    out = tmp_path / "out"
    assert main(["--train", str(path), "--out", str(out)]) == 0
    what = {".gz": "gzip members", ".zst": "zstd frames"}[ending]
    assert f"a.jsonl{ending} has 3 {what}; whether more were cut off" in capfd.readouterr().out
    assert np.load(out / "local_train.npy").tobytes() == b"\0a" * 3


def test_gzip_padded_with_zeros_and_blocked_gzip(tmp_path, capfd):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(pad(gzip.compress(GOOD)) + gzip.compress(GOOD))
    assert tokens_of(path) == b"\0a\0a"
    # BGZF: members with an extra field BC; an empty one ends the file.
    block = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\0BC\x02\0\x1b\0" + gzip.compress(GOOD, mtime=0)[10:]
    end = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\0BC\x02\0\x1b\0" + gzip.compress(b"", mtime=0)[10:]
    path.write_bytes(block * 3 + end)
    assert tokens_of(path) == b"\0a" * 3
    path.write_bytes(block * 2)
    path.rename(tmp_path / "b.jsonl.gz")
    assert "is cut off" in refused(tmp_path / "b.jsonl.gz", capfd)


def test_zstd_with_a_long_window(tmp_path):
    """`zstd --long=30` and `--long=31`, which zstd refuses by default."""
    for log in (28, 30):
        compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
        path = tmp_path / "a.jsonl.zst"
        path.write_bytes(compressor.compress(GOOD * 1000) + compressor.flush())
        assert tokens_of(path) == b"\0a" * 1000


def test_files_without_text_are_remarked_on(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").touch()
    (tmp_path / "c.txt").touch()
    assert main(["--train", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "Files without text: 2 (b.jsonl, c.txt).\n" in capfd.readouterr().out


def test_names_that_are_not_utf8(tmp_path, capfd):
    folder = tmp_path / "n"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    for ending, content in (
        (".txt", b"y"),
        (".jsonl", GOOD),
        (".parquet", parquet()),
        (".arrow", arrow(pa.array(["z"]))),
    ):
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9" + ending.encode())).write_bytes(content)
    assert main(["--train", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert sorted(set(np.load(tmp_path / "out" / "local_train.npy").tobytes().split(b"\0"))) == [
        b"", b"a", b"some text", b"x", b"y", b"z",
    ]  # fmt: skip
    name = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")
    assert main(["--source", name, "--valid-fraction", "0", "--out", str(tmp_path / "o2")]) == 0
    assert "caf\\udce9: prepared" in capfd.readouterr().out
    Path(name).write_bytes(b"\xff")
    assert "caf\\udce9.txt is not valid UTF-8" in refused(Path(name), capfd)


@pytest.mark.parametrize(
    "content",
    [GOOD, gzip.compress(GOOD, mtime=0), zstd.compress(GOOD), parquet(), arrow(pa.array(["a"]))],
    ids=["jsonl", "gzip", "zstd", "parquet", "arrow"],
)
def test_pipes(tmp_path, start, content):
    """A pipe's kind is that of its first bytes; it is read once."""
    path = tmp_path / "content"
    path.write_bytes(content)
    script = "import sys; from data_prep.__main__ import main; sys.exit(main(sys.argv[1:]))"
    feed = "import sys; open(sys.argv[1], 'wb').write(open(sys.argv[2], 'rb').read())"
    with open(path, "rb") as file:
        for source in ("/dev/stdin", str(tmp_path / "fifo.x")):
            if source != "/dev/stdin":
                os.mkfifo(source)
                feeder = start("-c", feed, source, path)
            file.seek(0)
            process = start("-c", script, "--train", source, "--out", tmp_path / "out", "--force", stdin=file)
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, "")
            tokens = np.load(tmp_path / "out" / "local_train.npy").tobytes()
            assert tokens == (b"\0some text" * 40 if content.startswith(b"PAR1") else b"\0a")
    feeder.communicate()


def test_broken_rows_of_read_table_name_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}) + "\nnull\n")
    with pytest.raises(InputError, match=r"broken in row 1"):
        list(read_table(tmp_path / "a.jsonl", "text"))
