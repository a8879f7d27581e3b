"""The container of compressed text, docs/compressed-format.md: blocks of lanes, with a checksum of everything.

This module writes and reads the bytes of the format. What codes a lane is passed in.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from nanoegg_mlx.errors import InputError

MAGIC = b"\x89EGG\r\n\x1a\n"
VERSION = 1
MOST_TEXT = 1 << 24
"""Bytes of text in a block."""
MOST_LANES = 65536
END = struct.Struct("<IQ32s")
"""0, the size of the text, its SHA-256."""
_HEAD = struct.Struct("<8sI32s")
_BLOCK = struct.Struct("<III")
_MOST_CODED = 3
"""Bytes of a stream for a byte of text: its frequency is at least 2^4 of 2^28."""

Encode = Callable[[Sequence[bytes]], list[bytes]]
"""The streams of lanes of text."""
Decode = Callable[[Sequence[bytes], Sequence[int]], list[bytes]]
"""The lanes of streams, of these sizes."""


def write(target: BinaryIO, model: bytes, blocks: Iterable[bytes], lanes: Callable[[int], int], encode: Encode) -> None:
    """Writes a whole file.

    Args:
        target: receives the bytes, front to back.
        model: SHA-256 of the model.
        blocks: the text, in pieces of 1 to 2^24 bytes.
        lanes: the number of lanes of a block of that size.
        encode: codes a block's lanes. A block that would not shrink is stored.
    """
    target.write(_HEAD.pack(MAGIC, VERSION, model))
    size, digest = 0, hashlib.sha256()
    for text in blocks:
        digest.update(text)
        size += len(text)
        bounds = _bounds(len(text), lanes(len(text)))
        streams = encode([text[first:last] for first, last in bounds])
        payload = struct.pack(f"<{len(streams)}I", *map(len, streams)) + b"".join(streams)
        if len(payload) >= len(text):
            streams, payload = [], text
        block = _BLOCK.pack(len(text), len(streams), len(payload)) + payload
        target.write(block + struct.pack("<I", zlib.crc32(block)))
    target.write(END.pack(0, size, digest.digest()))


def read(source: BinaryIO, name: str, model: bytes, decode: Decode) -> Iterator[bytes]:
    """Reads a whole file, a block of text at a time. Each block's checksum is right; the text is only when the last
    one was followed by the end of the iteration.

    Args:
        source: read to its end.
        name: of the file, for messages.
        model: SHA-256 of the model that decodes.
        decode: decodes a block's lanes.

    Raises:
        InputError: another file, version or model; or damage.
    """
    _check_head(source, name, model)
    size, digest = 0, hashlib.sha256()
    while True:
        first = _take(source, 4, name)
        if first == bytes(4):
            break
        text = _read_block(source, name, first, decode)
        digest.update(text)
        size += len(text)
        yield text
    rest = _take(source, END.size - 4, name)
    if END.pack(0, size, digest.digest()) != bytes(4) + rest:
        raise _damaged(name)
    if source.read(1):
        raise InputError(f"{name} continues after its end; it must end there.")


def _check_head(source: BinaryIO, name: str, model: bytes) -> None:
    magic = at_most(source, len(MAGIC))
    if magic != MAGIC:
        raise InputError(f"{name} is no compressed file of nanoegg; it must begin with the bytes {MAGIC.hex(' ')}.")
    version, made_with = struct.unpack("<I32s", _take(source, _HEAD.size - len(MAGIC), name))
    if version != VERSION:
        raise InputError(f"{name} has version {version} of the format; it must be {VERSION} for this program.")
    if made_with != model:
        raise InputError(
            f"{name} was compressed with a model whose SHA-256 begins with {made_with.hex()[:12]}; the model must be "
            f"that one, not {model.hex()[:12]}."
        )


def _read_block(source: BinaryIO, name: str, first: bytes, decode: Decode) -> bytes:
    """The text of a block whose first four bytes were read."""
    head = first + _take(source, _BLOCK.size - 4, name)
    size, lanes, coded = _BLOCK.unpack(head)
    # Checked before the payload is read, so that a damaged size asks for no more memory than the largest block.
    most = (4 + 8) * lanes + _MOST_CODED * size if lanes else size
    if size > MOST_TEXT or lanes > min(size, MOST_LANES) or coded > most:
        raise _damaged(name)
    payload = _take(source, coded, name)
    if _take(source, 4, name) != struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))):
        raise _damaged(name)
    if lanes == 0:
        if coded != size:
            raise _damaged(name)
        return payload
    if coded < 4 * lanes:
        raise _damaged(name)
    sizes = struct.unpack_from(f"<{lanes}I", payload)
    if sum(sizes) != coded - 4 * lanes:
        raise _damaged(name)
    streams, at = [], 4 * lanes
    for stream in sizes:
        streams.append(payload[at : at + stream])
        at += stream
    return b"".join(decode(streams, [last - first for first, last in _bounds(size, lanes)]))


def _bounds(size: int, lanes: int) -> list[tuple[int, int]]:
    """First byte and end of each lane of a block."""
    return [(size * lane // lanes, size * (lane + 1) // lanes) for lane in range(lanes)]


def _take(source: BinaryIO, size: int, name: str) -> bytes:
    content = at_most(source, size)
    if len(content) < size:
        raise InputError(f"{name} is truncated; it must be whole.")
    return content


def at_most(source: BinaryIO, size: int) -> bytes:
    """The next `size` bytes, or those up to the end; a pipe returns fewer at a time."""
    parts = []
    while size and (part := source.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _damaged(name: str) -> InputError:
    return InputError(f"{name} is damaged; it must be as it was written.")
