"""Readers of documents: a .txt or .md file is one document, each row of .jsonl, .parquet or .arrow is one.

Notable: every reader streams, so a file may be larger than memory. Parquet is read page by page. JSON is cut at line
ends into blocks, which Arrow parses one at a time. Arrow files are mapped, and pages that were read are returned to the
system: mapped pages count as resident memory and would otherwise add up to the file's size.
Each error in a file is raised as an InputError that names the file.
"""

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from data_prep.tokens import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    Encoded,
    InvalidText,
    check_text,
    is_text,
    text_chunks,
)
from nanoegg_mlx.errors import InputError

KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KNOWN = ".txt, .md and .jsonl (these also as .gz or .zst), .parquet, .arrow"


def kind_of(path: Path) -> str | None:
    """Returns 'text', 'jsonl', 'parquet' or 'arrow' by the file's name, None for any other name."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        kind = KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind in ("text", "jsonl") else None
    return KINDS.get(suffixes[-1]) if suffixes else None


def read_text(path: Path) -> Iterator[Encoded]:
    """Yields the one document of a text file, in pieces of about CHUNK_BYTES.

    Raises InputError when the file cannot be read or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, pending, documents, nul_seen = 0, 0, 1, False
    with _input_errors(f"The file {path}"), _open(path) as file:
        while True:
            piece = file.read(CHUNK_BYTES)
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                byte = position - pending + error.start
                raise InputError(
                    f"The file {path} is not valid UTF-8 at byte {byte}; it must be converted to UTF-8 or left out."
                ) from None
            if not piece and not documents:
                return
            position += len(piece)
            pending = len(decoder.getstate()[0])
            nul_first_seen = not nul_seen and b"\0" in piece
            nul_seen = nul_seen or nul_first_seen
            tokens = np.frombuffer(b"\0" * documents + piece, np.uint8)
            yield Encoded(tokens, documents, int(nul_first_seen))
            documents = 0


def read_table(path: Path, column: str, label: str | None = None) -> Iterator[pa.Array]:
    """Yields the rows of a text column, in order, as string or large_string arrays of valid UTF-8.

    label: subject of error messages (default: "The file" and its path).
    Raises InputError when the file is damaged or unreadable, when the column is missing or not text, and for a row that
    is not UTF-8.
    """
    readers = {"jsonl": _read_jsonl, "parquet": _read_parquet, "arrow": _read_arrow}
    name = label or f"The file {path}"
    first_row = 0
    with _input_errors(name):
        for array in readers[kind_of(path) or "arrow"](path, column, name):
            for chunk in text_chunks(array):
                try:
                    check_text(chunk)
                except InvalidText as error:
                    raise InputError(
                        f"{name} is not valid UTF-8 in column {column!r}, row {first_row + error.row} (counted from "
                        f"0), byte {error.byte}; that row must be repaired or left out."
                    ) from None
                yield chunk
                first_row += len(chunk)


def _read_parquet(path: Path, column: str, name: str) -> Iterator[pa.Array]:
    with pa.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        check_column(file.schema_arrow, column, name)
        leaf = next(i for i, c in enumerate(file.schema) if c.path == column)
        for group in range(file.num_row_groups):
            chunk = file.metadata.row_group(group).column(leaf)
            row_bytes = chunk.total_uncompressed_size // max(chunk.num_values, 1) + 1
            rows = min(max(CHUNK_BYTES // row_bytes, 1), CHUNK_ROWS)
            for batch in file.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False):
                yield batch.column(0)


def _read_arrow(path: Path, column: str, name: str) -> Iterator[pa.Array]:
    with open(path, "rb") as file:
        if not file.read(1):
            raise InputError(f"{name} is empty; it must be an Arrow file.")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    buffer = pa.py_buffer(mapped)
    for batch in _record_batches(buffer):
        check_column(batch.schema, column, name)
        # One batch can be the whole file, so its pages are returned after each slice.
        for chunk in text_chunks(batch.column(column)):
            yield chunk
            mapped.madvise(mmap.MADV_DONTNEED)


def _record_batches(buffer: pa.Buffer) -> Iterator[pa.RecordBatch]:
    if buffer.size >= 6 and buffer[:6].to_pybytes() == b"ARROW1":
        with pa.ipc.open_file(buffer) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)
    else:
        with pa.ipc.open_stream(buffer) as reader:
            yield from reader


def _read_jsonl(path: Path, column: str, name: str) -> Iterator[pa.Array]:
    rows = 0
    for block in _line_blocks(path):
        try:
            array = _parse_json(block, column)
        except pa.ArrowInvalid as error:
            raise InputError(_json_message(error, rows, column, name)) from None
        if rows == 0 and array.null_count == len(array):
            _check_json_keys(block, column, name)
        yield array
        rows += len(array)


def _line_blocks(path: Path) -> Iterator[bytes]:
    """Yields the file in blocks of whole lines: CHUNK_BYTES, or as long as the longest line."""
    with _open(path) as file:
        pieces: list[bytes] = []
        while piece := file.read(CHUNK_BYTES):
            end = piece.rfind(b"\n") + 1
            if end:
                yield b"".join([*pieces, piece[:end]])
                pieces = []
            pieces.append(piece[end:])
        rest = b"".join(pieces)
        if rest:
            yield rest


def _parse_json(block: bytes, column: str) -> pa.Array:
    table = pa.json.read_json(
        pa.BufferReader(block),
        read_options=pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=pa.json.ParseOptions(
            explicit_schema=pa.schema([(column, pa.string())]), unexpected_field_behavior="ignore"
        ),
    )
    return table.column(column).combine_chunks()


def _json_message(error: pa.ArrowInvalid, rows: int, column: str, name: str) -> str:
    text = str(error).removeprefix("JSON parse error: ")
    rule = "it must have one JSON object on each line."
    match = re.search(r" in row (\d+)$", text)
    if not match:
        return f"{name} is broken near row {rows} (counted from 0; {text}); {rule}"
    row, text = rows + int(match[1]), text[: match.start()].rstrip(".")
    if kind := re.fullmatch(rf"Column\(/{re.escape(column)}\) changed from string to (\w+)", text):
        return (
            f"{name} has a {kind[1]}, not text, under {column!r} in row {row} (counted from 0); "
            "--column must name the key of the text."
        )
    return f"{name} is broken in row {row} (counted from 0; {text}); {rule}"


def _check_json_keys(block: bytes, column: str, name: str) -> None:
    line = block.strip().split(b"\n", 1)[0]
    keys = list(json.loads(line)) if line else [column]
    if column not in keys:
        raise InputError(
            f"{name} has no column {column!r} (its first row has {', '.join(map(repr, keys)) or 'none'}); "
            "--column must name the key of the text."
        )


def check_column(schema: pa.Schema, column: str, name: str) -> None:
    """Raises InputError unless the schema has exactly one column of that name, of a text type."""
    if schema.names.count(column) != 1:
        raise InputError(
            f"{name} has {'no' if column not in schema.names else 'more than one'} column {column!r} (its columns are "
            f"{', '.join(map(repr, schema.names)) or 'none'}); --column must name the one with the text."
        )
    kind = schema.field(column).type
    if not is_text(kind):
        texts = [field.name for field in schema if is_text(field.type)]
        raise InputError(
            f"{name} has {kind}, not text, in column {column!r}; --column must name a text column (here: "
            f"{', '.join(map(repr, texts)) or 'none'})."
        )


def _open(path: Path) -> pa.NativeFile:
    return pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix.lower()))


@contextmanager
def _input_errors(name: str) -> Iterator[None]:
    """Turns errors of the system and of Arrow into an InputError whose subject is `name`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; it must exist until all text is read.") from None
    except PermissionError:
        raise InputError(f"{name} cannot be read (permission denied); it must be readable.") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, MemoryError):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"{name} cannot be read ({reason}); it must be an undamaged file of its name's kind."
        ) from None
