"""Reader of JSON lines: one object on each line, blank lines left out.

Notable: Arrow's parser accepts values over several lines, several on one line, and rows that are not objects; a row
`null` can end the process. So each line must begin with `{` and end with `}` before Arrow receives it, and it must
return as many rows as there are lines. A line break within an object stands between other characters, so this means
one object on each line. The answer for a line does not depend on the block that it is in.
"""

import json
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.json

from data_prep import columns, streams
from data_prep.streams import Input
from nanoegg_mlx.errors import InputError

RULE = "it must have one JSON object on each line"
MARK = b"\xef\xbb\xbf"
LOOKS = {b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file", b"PK\3\4": "a zip archive", b"\x1f\x8b": "a gzip file",
         b"\x28\xb5\x2f\xfd": "a zstd file", b"[": "a JSON array", b"<": "XML or HTML"}  # fmt: skip


def read(source: Input, column: str, size: int) -> Iterator[pa.Array]:
    """Yields the column's values, (rows,) string arrays with nulls where a row lacks the key or holds null.

    size: bytes of a block; a longer line is a block of its own.
    Where the first row has no key `a.b`, but an object `a` with a key `b`, these are the column; to any depth.
    Raises InputError for a line that is not an object, a value that is not text, a file without any text
    whose first row lacks the key, and one with both a key `a.b` and a key `b` of an object `a`.
    """
    rows = nulls = 0
    first = b""
    path = [column]
    for block in _line_blocks(source, size):
        block, count = _checked(block, rows, source.name)
        if not count:
            continue
        if not first:
            first = block.partition(b"\n")[0]
            path = _path(first, column, source.name)
        array = _parse(block, count, path, column, rows, source.name)
        rows += count
        nulls += array.null_count
        yield array
    if rows and nulls == rows:
        _check_keys(first, column, source.name)


def _line_blocks(source: Input, size: int) -> Iterator[bytes]:
    """Yields the file in blocks of whole lines: `size` bytes, or as long as the longest line."""
    pending: list[bytes] = []
    begin = True
    for piece in streams.pieces(source, size):
        end = piece.rfind(b"\n") + 1
        if end:
            block = b"".join([*pending, piece[:end]])
            yield block.removeprefix(MARK) if begin else block
            pending, begin = [], False
        pending.append(piece[end:])
    rest = b"".join(pending)
    yield rest.removeprefix(MARK) if begin else rest


def _checked(block: bytes, rows: int, name: str) -> tuple[bytes, int]:
    """Returns a block's lines without blank ones, and their number. Raises InputError for a line without braces."""
    if block.startswith(b"{") and block.endswith(b"}\n"):
        data = np.frombuffer(block, np.uint8)
        ends = _line_ends(data)
        if (data[ends - 1] == ord("}")).all() and (data[ends[:-1] + 1] == ord("{")).all():
            return block, len(ends)
    lines = [line for line in (line.strip(b" \t\r") for line in block.split(b"\n")) if line]
    for number, line in enumerate(lines):
        if not (line.startswith(b"{") and line.endswith(b"}")):
            raise InputError(_wrong_line(lines, number, rows + number, name))
    return b"\n".join(lines), len(lines)


def _line_ends(data: np.ndarray) -> np.ndarray:
    """Returns the positions of line feeds in (n,) uint8, found in parts that stay in the processor's cache."""
    part = 1 << 18
    return np.concatenate([np.flatnonzero(data[i : i + part] == ord("\n")) + i for i in range(0, len(data), part)])


def _wrong_line(lines: list[bytes], number: int, row: int, name: str) -> str:
    """Returns the sentence for a line that does not begin with { and end with }."""
    line = lines[number]
    if row == 0 and (look := next((look for magic, look in LOOKS.items() if line.startswith(magic)), None)):
        return f"{name} looks like {look}; {RULE}."
    if line.startswith(b"{") and _open_ended(line):
        return f"{name} looks like JSON over several lines (pretty-printed); {RULE} (`jq -c .` writes it so)."
    found = "is not a JSON object"
    try:
        value = json.loads(line)
        found = f"has {_kind(value)}, not a JSON object"
    except (ValueError, RecursionError) as error:
        found += f": {_reason(error)}"
    return f"{name} is broken in row {row} (counted from 0; it {found}); {RULE}."


def _open_ended(line: bytes) -> bool:
    """Returns whether a line is the beginning of a JSON object that goes on, as printers break it."""
    return line == b"{" or line.endswith((b",", b"{", b"["))


def _path(line: bytes, column: str, name: str) -> list[str]:
    """Returns the keys that lead to the text in the first row: the column itself if the row has it or nothing else."""
    try:
        found = columns.paths(column, _entries(json.loads(line)), _entries)
    except (ValueError, RecursionError):
        found = []
    if len(found) > 1 and [column] not in found:
        raise InputError(_ambiguous(column, name))
    return [column] if [column] in found or not found else found[0]


def _entries(value: object) -> list[tuple[str, object]]:
    return list(value.items()) if isinstance(value, dict) else []


def _ambiguous(column: str, name: str) -> str:
    return f"{name} has more than one column {column!r} (keys of objects among them); --column must name only one."


def _parse(block: bytes, count: int, path: list[str], column: str, rows: int, name: str) -> pa.Array:
    """Parses `count` checked lines. Raises InputError, with the row's number."""
    field = pa.field(path[-1], pa.string())
    for key in reversed(path[:-1]):
        field = pa.field(key, pa.struct([field]))
    fields = [field] if path == [column] else [field, pa.field(column, pa.string())]
    try:
        table = pa.json.read_json(
            pa.BufferReader(block),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pa.json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid as error:
        raise InputError(_message(error, block, path, rows, name, column)) from None
    if len(table) != count:
        raise InputError(_glued(block, rows, name))
    if path == [column]:
        return table.column(column).combine_chunks()
    if table.column(column).null_count < count:
        raise InputError(_ambiguous(column, name))
    return pa.compute.struct_field(table.column(path[0]).combine_chunks(), path[1:])


def _message(error: pa.ArrowInvalid, block: bytes, path: list[str], rows: int, name: str, column: str) -> str:
    text = str(error).removeprefix("JSON parse error: ")
    match = re.search(r" in row (\d+)$", text)
    if not match:
        return f"{name} is broken near row {rows} (counted from 0; {text.partition(chr(10))[0]}); {RULE}."
    row, text = rows + int(match[1]), text[: match.start()].rstrip(".")
    kind = re.fullmatch(r"Column\(/(.*)\) changed from \w+ to (\w+)", text, re.DOTALL)
    if kind and "/".join([*path, ""]).startswith(f"{kind[1]}/"):
        article = "an" if kind[2][0] in "aeiou" else "a"
        return (
            f"{name} has {article} {kind[2]}, not text, under {column!r} in row {row} (counted from 0); "
            "--column must name the key that holds the text."
        )
    if "changed from" in text:
        return _glued(block, rows, name)
    return f"{name} is broken in row {row} (counted from 0; {text}); {RULE}."


def _glued(block: bytes, rows: int, name: str) -> str:
    """Returns the sentence for a block that has several values on a line."""
    row = rows
    for line in block.split(b"\n"):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            break
        row += 1
    return f"{name} is broken in row {row} (counted from 0; more than one JSON value on the line); {RULE}."


def _check_keys(line: bytes, column: str, name: str) -> None:
    """Raises InputError if the first row lacks the key."""
    try:
        keys = list(json.loads(line))
        if column in keys:
            return
        has = f" (its first row has {', '.join(map(repr, keys)) or 'none'})"
    except (ValueError, RecursionError):
        # Arrow accepts a few values that Python does not, such as -NaN and deep nesting.
        has = ""
    raise InputError(f"{name} has no column {column!r}{has}; --column must name the key that holds the text.")


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "null")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        wording = {"Expecting ',' delimiter": "missing a comma or a bracket", "Extra data": "more than one value"}
        return wording.get(error.msg, error.msg[0].lower() + error.msg[1:])
    return "nested too deeply" if isinstance(error, RecursionError) else "not UTF-8"
