"""Every file format, read whole and in small pieces, and the messages for damaged files."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import formats
from data_prep.formats import read_table, read_text
from data_prep.streams import CODECS, kind_of
from data_prep.tokens import encode
from nanoegg_mlx.errors import InputError

ROWS = [
    "first",
    "",
    None,
    "zwölf Boxkämpfer €😀",
    "nul \0 inside",
    'line\nbreak \\ " \u2028',
    "x" * 900,
]
DOCUMENTS = [row for row in ROWS if row is not None]


def write_compressed(path: Path, data: bytes) -> None:
    codec = CODECS.get(path.suffix)
    with pa.output_stream(path, compression=codec) as file:
        file.write(data)


def write_table(path: Path, rows: list, kind: pa.DataType | None = None) -> Path:
    """Writes a file of the format of the name `path`, with other columns around the text."""
    count = len(rows)
    table = pa.table({"id": range(count), "text": pa.array(rows, kind), "n": [None] * count})
    if ".jsonl" in path.name:
        lines = [json.dumps({"id": [i], "text": row, "n": {}}) for i, row in enumerate(rows)]
        write_compressed(path, "\n".join(lines).encode())
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=4)
    elif path.name == "stream.arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    elif path.name == "packed.arrow":
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(path, table.schema, options=options) as writer:
            writer.write_table(table)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return path


def tokens_of(path: Path) -> np.ndarray:
    return np.concatenate([encode(array).tokens for array in read_table(path, "text")])


TABLES = [
    "a.jsonl", "a.jsonl.gz", "a.jsonl.zst",
    "a.parquet", "file.arrow", "stream.arrow", "packed.arrow",
]  # fmt: skip


@pytest.mark.parametrize("chunk", [16, 1000, 8 << 20])
@pytest.mark.parametrize("name", TABLES)
def test_table_files(tmp_path, monkeypatch, naive_tokens, name, chunk):
    monkeypatch.setattr(formats, "CHUNK_BYTES", chunk)
    path = write_table(tmp_path / name, ROWS)
    assert np.array_equal(tokens_of(path), naive_tokens(DOCUMENTS))
    assert [row for array in read_table(path, "text") for row in array.to_pylist()] == ROWS


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow"])
@pytest.mark.parametrize("kind", [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_table_files_of_other_text_types(tmp_path, naive_tokens, name, kind):
    rows = [r.encode() if r and kind == pa.binary() else r for r in ROWS]
    path = write_table(tmp_path / name, rows, kind)
    assert np.array_equal(tokens_of(path), naive_tokens(DOCUMENTS))


def test_parquet_with_a_nested_column_of_the_same_leaf_name(tmp_path, naive_tokens):
    table = pa.table({"meta": [{"text": 1}, {"text": 2}], "text": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert np.array_equal(tokens_of(tmp_path / "a.parquet"), naive_tokens(["a", "b"]))


@pytest.mark.parametrize("chunk", [1, 7, 8 << 20])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.md.zst"])
def test_text_files(tmp_path, monkeypatch, naive_tokens, name, chunk):
    monkeypatch.setattr(formats, "CHUNK_BYTES", chunk)
    text = "€ 😀 \r\n\0 and \0 ends with ö"
    write_compressed(tmp_path / name, text.encode())
    pieces = list(read_text(tmp_path / name))
    assert np.array_equal(np.concatenate([p.tokens for p in pieces]), naive_tokens([text]))
    assert sum(p.documents for p in pieces) == 1
    assert sum(p.documents_with_nul for p in pieces) == 1


def test_an_empty_text_file_is_an_empty_document(tmp_path):
    (tmp_path / "a.txt").touch()
    (piece,) = read_text(tmp_path / "a.txt")
    assert (piece.tokens.tolist(), piece.documents) == ([0], 1)


@pytest.mark.parametrize("chunk", [1, 3, 8 << 20])
@pytest.mark.parametrize(("data", "byte"), [(b"abc\xffd", 3), ("ab€".encode()[:-1], 2), (b"\xff\xfea\0", 0)])
def test_text_that_is_not_utf8_is_named_to_the_byte(tmp_path, monkeypatch, data, byte, chunk):
    monkeypatch.setattr(formats, "CHUNK_BYTES", chunk)
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.txt is not valid UTF-8 at byte {byte};"):
        list(read_text(tmp_path / "a.txt"))


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_rows_that_are_not_utf8_are_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr(formats, "CHUNK_ROWS", 2)
    rows = [b"fine"] * 7 + [b"ab\xff"] + [b"fine"]
    path = write_table(tmp_path / name, rows, pa.binary())
    with pytest.raises(InputError, match=rf"{name} is .* 'text', row 7 \(.*\), byte 2;"):
        tokens_of(path)


def test_json_rows_that_are_not_utf8_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "CHUNK_BYTES", 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' * 5 + b'{"text": "ab\xff"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl is .* row 5 \(.*\), byte 2;"):
        tokens_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_column_and_one_that_is_not_text(tmp_path, name):
    path = write_table(tmp_path / name, ["a", "b"])
    with pytest.raises(InputError, match=r"no column 'body'.*'id', 'text', 'n'.*--column"):
        list(read_table(path, "body"))
    with pytest.raises(InputError, match=r"has \w+, not text|has an array, not text"):
        list(read_table(path, "id"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"broken in row 6 .*[Mm]issing a comma"),
        (b'{"text": 5}', r"has a number, not text, under 'text' in row 6"),
        (b'{"text": "\\ud800"}', r"broken in row 6 .*surrogate"),
        (b'["text"]', r"broken in row 6 .*array"),
    ],
)
def test_broken_json_is_named_by_row(tmp_path, monkeypatch, line, message):
    monkeypatch.setattr(formats, "CHUNK_BYTES", 40)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n\n' * 6 + line + b"\n")
    with pytest.raises(InputError, match=rf"a\.jsonl.*{message}"):
        list(read_table(tmp_path / "a.jsonl", "text"))


@pytest.mark.parametrize("name", [*TABLES, "a.txt.gz", "a.txt.zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_broken_files_are_named(tmp_path, name, damage):
    path = tmp_path / name
    if ".txt" in name:
        write_compressed(path, bytes(range(97, 123)) * 500)
    else:
        write_table(path, ROWS * 50)
    whole = path.read_bytes()
    damaged = {"cut": whole[: len(whole) * 2 // 3], "garbage": b"PK\3\4" * 99, "empty": b""}
    path.write_bytes(damaged[damage])
    if damage == "empty" and name == "a.jsonl":
        assert not list(read_table(path, "text"))
        return
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        list(read_text(path) if ".txt" in name else read_table(path, "text"))


def test_files_without_permission_or_gone(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"gone\.txt does not exist"):
        list(read_text(tmp_path / "gone.txt"))
    with pytest.raises(InputError, match=r"gone\.parquet does not exist"):
        list(read_table(tmp_path / "gone.parquet", "text"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=r"a\.txt cannot be read \(permission denied\)"):
        list(read_text(tmp_path / "a.txt"))


def test_kinds_by_name():
    kinds = {"a.TXT": "text", "b.md.gz": "text", "c.d.jsonl.zst": "jsonl", "e.parquet": "parquet"}
    kinds |= {"f.arrow": "arrow", "g.parquet.gz": None, "h.csv": None, "i": None, "j.gz": None}
    assert {name: kind_of(Path(name)) for name in kinds} == kinds
