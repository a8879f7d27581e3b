"""Arrow text to tokens: each document becomes a 0x00 byte and its UTF-8 bytes.

Notable: no Python object is made for a document. Arrow stores a column as one buffer of bytes and one of offsets. Its
`binary_join` kernel copies such a buffer with a separator between documents, one memcpy a document, and the result is
the token array. (The same in NumPy, with a zero-filled array and a boolean mask, takes 4 to 20 times as long.) This
module uses the offsets only to cut columns into chunks of bounded size and to find documents that contain a 0x00 byte.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK_BYTES = 4 << 20
CHUNK_ROWS = 8192


@dataclass(frozen=True)
class Encoded:
    """Tokens, and counts of the documents that begin in them.

    tokens: (n,) uint8. documents: documents that begin here. documents_with_nul: those of them that contain a 0x00
    byte. null_documents: rows without text, which add nothing to tokens.
    """

    tokens: np.ndarray
    documents: int
    documents_with_nul: int = 0
    null_documents: int = 0


class InvalidText(Exception):
    """Row `row` of an array is not UTF-8; its first invalid byte is number `byte`."""

    def __init__(self, row: int, byte: int):
        super().__init__(f"row {row} is not valid UTF-8 at its byte {byte}")
        self.row = row
        self.byte = byte


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a column of this type can be read as text: strings, bytes, dictionaries of them."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def text_chunks(array: pa.Array) -> Iterator[pa.Array]:
    """Yields consecutive slices of a text array, each small in memory.

    array: (n,) of any type that `is_text` accepts; may have nulls and an offset.
    Yields string or large_string arrays, n rows in all: at most CHUNK_BYTES each, unless one document alone is larger.
    Bytes are not checked; see `check_text`.
    Raises pa.ArrowInvalid for buffers that are too small, and for indices and views outside the data.
    """
    kind = array.type
    array.validate()
    if pa.types.is_dictionary(kind):
        _check_dictionary(array)
        for start in range(0, len(array), CHUNK_ROWS):
            yield from text_chunks(array.slice(start, CHUNK_ROWS).dictionary_decode())
    elif pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        for start in range(0, len(array), CHUNK_ROWS):
            part = array.slice(start, CHUNK_ROWS).view(pa.binary_view())
            part.validate(full=True)
            yield from text_chunks(part.cast(pa.large_binary()))
    elif len(array):
        large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
        text = array.view(pa.large_string() if large else pa.string())
        offsets = _offsets(text)
        start = 0
        while start < len(text):
            limit = int(offsets[start]) + CHUNK_BYTES
            stop = int(np.searchsorted(offsets, limit, side="right")) - 1
            stop = min(max(stop, start + 1), start + CHUNK_BYTES // 8)
            yield text.slice(start, stop - start)
            start = stop


def _check_dictionary(array: pa.DictionaryArray) -> None:
    """Raises pa.ArrowInvalid for indices outside the dictionary, which Arrow's kernels follow, and a damaged one."""
    words = array.dictionary
    kind = words.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        words = _as_bytes(words)
    words.validate(full=True)
    bounds = pc.min_max(array.indices)
    if bounds["min"].is_valid and not 0 <= bounds["min"].as_py() <= bounds["max"].as_py() < len(words):
        raise pa.ArrowInvalid("an index is outside its dictionary")


def check_text(array: pa.Array) -> None:
    """Checks every document of a string or large_string array, and the offsets.

    Raises InvalidText for the first document that is not UTF-8, pa.ArrowInvalid for offsets outside the data.
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        for row, value in enumerate(_as_bytes(array)):
            try:
                (value.as_py() or b"").decode()
            except UnicodeDecodeError as invalid:
                raise InvalidText(row, invalid.start) from None
        raise


def encode(array: pa.Array) -> Encoded:
    """Encodes a string or large_string array of valid text: 0x00 and the row's bytes, row by row.

    array: (n,); may have an offset and nulls, which are left out and counted.
    Returns tokens of shape (bytes + n - nulls,), uint8.
    """
    nulls = array.null_count
    if nulls:
        array = array.drop_null()
    if len(array) == 0:
        return Encoded(np.empty(0, np.uint8), 0, 0, nulls)
    as_list = pa.ListArray.from_arrays([0, len(array)], array)
    joined = pc.binary_join(as_list, pa.scalar("\0", array.type))
    data = joined.buffers()[2]
    tokens = np.zeros(1 + (data.size if data else 0), np.uint8)
    if data:
        tokens[1:] = np.frombuffer(data, np.uint8)
    return Encoded(tokens, len(array), _documents_with_nul(array, tokens), nulls)


def _documents_with_nul(array: pa.Array, tokens: np.ndarray) -> int:
    zeros = len(tokens) - int(np.count_nonzero(tokens))
    if zeros == len(array):
        return 0
    offsets = _offsets(array)
    separators = offsets[:-1] - offsets[0] + np.arange(len(array))
    document = np.searchsorted(separators, np.flatnonzero(tokens == 0), side="right") - 1
    return int(np.count_nonzero(np.bincount(document) > 1))


def _offsets(array: pa.Array) -> np.ndarray:
    width = np.int64 if pa.types.is_large_string(array.type) else np.int32
    # The buffer may be longer than the array, and end within an offset.
    return np.frombuffer(array.buffers()[1], width, array.offset + len(array) + 1)[array.offset :]


def _as_bytes(array: pa.Array) -> pa.Array:
    return array.view(pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary())
