"""Readers of documents: a .txt or .md file is one document, each row of .jsonl, .parquet or .arrow is one.

Notable: every reader streams, so a file may be larger than memory. Parquet is read page by page. JSON is cut at line
ends into blocks, which Arrow parses one at a time. Arrow files are mapped, and pages that were read are returned to the
system: mapped pages count as resident memory and would otherwise add up to the file's size.
Each error in a file is raised as an InputError that names the file. A damaged file may still end the process within
Arrow's code; isolation.py makes a sentence of that too.
"""

import codecs
import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from data_prep import columns, json_lines, streams
from data_prep.streams import Input
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


def read_text(path: Path | Input) -> Iterator[Encoded]:
    """Yields the one document of a text file, in pieces of about CHUNK_BYTES.

    Raises InputError when the file cannot be read or is not UTF-8.
    """
    source = Input.of(path)
    with input_errors(source.name):
        yield from encode_text(streams.pieces(source, CHUNK_BYTES), source.name)


def encode_text(pieces: Iterator[bytes], name: str, position: int = 0) -> Iterator[Encoded]:
    """Yields the tokens of one document, which begins at byte `position`. Raises InputError when it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending, documents, nul_seen = 0, 1, False
    while True:
        piece = next(pieces, b"")
        try:
            decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            byte = position - pending + error.start
            raise InputError(
                f"{name} is not valid UTF-8 at byte {byte}; it must be converted to UTF-8 or left out."
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


def read_table(path: Path | Input, column: str, label: str | None = None) -> Iterator[pa.Array]:
    """Yields the rows of a text column, in order, as string or large_string arrays of valid UTF-8.

    label: subject of error messages (default: "The file" and its path).
    Raises InputError when the file is damaged or unreadable, when the column is missing or not text, and for a row that
    is not UTF-8.
    """
    source = Input.of(path, label)
    with input_errors(source.name):
        yield from checked_arrays(_arrays(source, column), column, source.name)


def checked_arrays(arrays: Iterable[pa.Array], column: str, name: str) -> Iterator[pa.Array]:
    """Yields the rows of text arrays in slices of bounded size. Raises InputError for a row that is not UTF-8."""
    first_row = 0
    for array in arrays:
        for chunk in text_chunks(array):
            try:
                check_text(chunk)
            except InvalidText as error:
                raise InputError(
                    f"{name} is not valid UTF-8 in column {column!r}, row {first_row + error.row} (counted from 0), "
                    f"byte {error.byte}; that row must be repaired or left out."
                ) from None
            yield chunk
            first_row += len(chunk)


def _arrays(source: Input, column: str) -> Iterator[pa.Array]:
    if source.kind == "jsonl":
        return json_lines.read(source, column, CHUNK_BYTES)
    return (_read_parquet if source.kind == "parquet" else _read_arrow)(source, column)


def _read_parquet(source: Input, column: str) -> Iterator[pa.Array]:
    with (
        open(source.path, "rb") as stream,
        pa.parquet.ParquetFile(_native(source.path, stream), buffer_size=1 << 20, pre_buffer=False) as file,
    ):
        path = find_column(file.schema_arrow, column, source.name)
        leaf = _leaf(file.schema_arrow, path)
        for group in range(file.num_row_groups):

            def batches(rows: int, group: int = group) -> Iterator[pa.RecordBatch]:
                # ParquetFile.iter_batches selects columns by path, which may be that of several.
                return file.reader.iter_batches(rows, row_groups=[group], column_indices=[leaf], use_threads=False)

            # Reading reports damaged or encrypted metadata; looking at it may end the process.
            next(batches(1), None)
            for batch in batches(_batch_rows(file.metadata.row_group(group).column(leaf))):
                yield descend(batch.column(0), path[1:])


def _batch_rows(chunk: pa.parquet.ColumnChunkMetaData) -> int:
    """Returns the number of rows that hold about CHUNK_BYTES. The metadata may be damaged."""
    row_bytes = max(chunk.total_uncompressed_size, 0) // max(chunk.num_values, 1) + 1
    return min(max(CHUNK_BYTES // row_bytes, 1), CHUNK_ROWS)


def _native(path: Path, stream: BinaryIO) -> object:
    """Returns the path for Arrow to open, or the open file where the name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return stream
    return str(path)


def _read_arrow(source: Input, column: str) -> Iterator[pa.Array]:
    with open(source.path, "rb") as file:
        if not file.read(1):
            raise InputError(f"{source.name} is empty; it must be an Arrow file.")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    buffer = pa.py_buffer(mapped)
    for batch in _record_batches(buffer):
        path = find_column(batch.schema, column, source.name)
        # One batch can be the whole file, so its pages are returned after each slice.
        for chunk in text_chunks(descend(batch.column(path[0]), path[1:])):
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


def find_column(schema: pa.Schema, column: str, name: str) -> list[str]:
    """The path of a text column: its name, or else, for `a.b`, a struct's name and a field's, to any depth.

    Raises InputError unless the schema has exactly one column of that name, or no such column and exactly one field of
    that path, of a text type.
    """
    found = [[column]] * schema.names.count(column) or columns.paths(column, _fields(pa.struct(schema)), _fields)
    if len(found) != 1:
        raise InputError(
            f"{name} has {'more than one' if found else 'no'} column {column!r} (its columns are "
            f"{', '.join(map(repr, schema.names)) or 'none'}); --column must name the one with the text."
        )
    kind = schema.field(found[0][0]).type
    for field in found[0][1:]:
        kind = kind.field(field).type
    if not is_text(kind):
        texts = [field.name for field in schema if is_text(field.type)]
        raise InputError(
            f"{name} has {kind}, not text, in column {column!r}; --column must name a text column (here: "
            f"{', '.join(map(repr, texts)) or 'none'})."
        )
    return found[0]


def _fields(kind: pa.DataType) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in (kind.fields if pa.types.is_struct(kind) else [])]


def _leaf(schema: pa.Schema, path: list[str]) -> int:
    """The number of a column or field among the columns of a Parquet file, which are the leaves of its schema."""
    leaf, fields = 0, list(schema)
    for name in path:
        place = next(i for i, field in enumerate(fields) if field.name == name)
        leaf += sum(_leaves(field.type) for field in fields[:place])
        fields = fields[place].type.fields if pa.types.is_struct(fields[place].type) else []
    return leaf


def _leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves(kind.storage_type)
    if pa.types.is_dictionary(kind) or not kind.num_fields:
        return 1
    return sum(_leaves(kind.field(number).type) for number in range(kind.num_fields))


def descend(array: pa.Array, path: list[str]) -> pa.Array:
    """The field of a struct array, of that inside of it, and so on; null where a struct is null."""
    return pa.compute.struct_field(array, path) if path else array


@contextmanager
def input_errors(name: str) -> Iterator[None]:
    """Turns errors of the system and of Arrow into an InputError whose subject is `name`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; it must exist until all text is read.") from None
    except PermissionError:
        raise InputError(f"{name} cannot be read (permission denied); it must be readable.") from None
    except (OSError, pa.ArrowException, MemoryError, ArithmeticError, ValueError, TypeError, LookupError) as error:
        # Damaged metadata reaches Python code of Arrow and NumPy too.
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".")
        reason = reason or type(error).__name__
        raise InputError(
            f"{name} cannot be read ({reason}); it must be an undamaged file of its name's kind."
        ) from None
