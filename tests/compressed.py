"""The naive twin of the compressed format: docs/compressed-format.md in Python's integers, over the oracle's logits."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests import oracle

MAGIC = bytes.fromhex("89454747 0D0A1A0A") + struct.pack("<I", 1)
ALL = 2**64 - 1


def frequencies(params: oracle.Params, c: Any) -> Iterator[np.ndarray]:
    """A lane's frequencies (256,) of the next byte; `send` tells the byte that it was."""
    state, byte = np.zeros((c.n_layer, c.n_embd), np.int64), 0
    while True:
        logits, state = oracle.forward(params, None, 0, state, byte)
        byte = yield oracle.EXP2[logits + 128]


class Encoder:
    def __init__(self) -> None:
        self.written, self.low, self.range = bytearray(), 0, ALL

    def add(self, n: int) -> None:
        self.low += n
        if self.low > ALL:
            self.low &= ALL
            number = int.from_bytes(self.written, "big") + 1
            self.written = bytearray(number.to_bytes(len(self.written), "big"))

    def encode(self, f: Sequence[int], byte: int) -> None:
        r = self.range // sum(f)
        self.add(r * sum(f[:byte]))
        self.range = r * f[byte]
        while self.range < 2**56:
            self.written.append(self.low >> 56)
            self.low, self.range = self.low << 8 & ALL, self.range << 8

    def end(self) -> bytes:
        for size in range(9):
            unit = 2 ** (64 - 8 * size)
            v = -(-self.low // unit)
            if v * unit < self.low + self.range:
                break
        self.add(v * unit - self.low)
        self.written += (self.low // unit).to_bytes(size, "big")
        return bytes(self.written).rstrip(b"\0")


def encode_lane(params: oracle.Params, c: Any, text: bytes) -> bytes:
    """The stream of one lane."""
    encoder, lane = Encoder(), frequencies(params, c)
    f = next(lane)
    for byte in text:
        encoder.encode(f.tolist(), byte)
        f = lane.send(byte)
    return encoder.end()


def decode_lane(params: oracle.Params, c: Any, stream: bytes, size: int) -> bytes:
    """The text of one lane, of `size` bytes."""
    source = iter(stream)
    code, range_, text = 0, ALL, bytearray()
    for _ in range(8):
        code = code << 8 | next(source, 0)
    lane = frequencies(params, c)
    f = next(lane)
    for _ in range(size):
        total = int(f.sum())
        r = range_ // total
        F = np.append(0, np.cumsum(f))
        b = int(np.searchsorted(F, min(code // r, total - 1), side="right")) - 1
        text.append(b)
        code, range_ = code - r * int(F[b]), r * int(f[b])
        while range_ < 2**56:
            code, range_ = (code << 8 | next(source, 0)) & ALL, range_ << 8
        f = lane.send(b)
    return bytes(text)


def model_sha256(params: oracle.Params, c: Any) -> bytes:
    content = b"nanoegg1" + struct.pack("<3I", c.n_layer, c.n_embd, c.vocab_size)
    return hashlib.sha256(content + b"".join(params[name].tobytes() for name, _, _ in oracle.leaves(c))).digest()


def block(text: bytes, streams: Sequence[bytes]) -> bytes:
    """A block: with streams those of its lanes, without any the text itself."""
    payload = b"".join(struct.pack("<I", len(stream)) for stream in streams) + b"".join(streams) if streams else text
    content = struct.pack("<3I", len(text), len(streams), len(payload)) + payload
    return content + struct.pack("<I", zlib.crc32(content))


def cut(text: bytes, lanes: int) -> list[bytes]:
    """The text of each lane."""
    n = len(text)
    return [text[n * j // lanes : n * (j + 1) // lanes] for j in range(lanes)]


def pack(params: oracle.Params, c: Any, parts: Sequence[tuple[bytes, int]]) -> bytes:
    """A file with a block for each (text, lanes)."""
    blocks = [
        block(text, [encode_lane(params, c, lane) for lane in cut(text, lanes)] if lanes else [])
        for text, lanes in parts
    ]
    text = b"".join(text for text, _ in parts)
    end = struct.pack("<IQ", 0, len(text)) + hashlib.sha256(text).digest()
    return MAGIC + model_sha256(params, c) + b"".join(blocks) + end


def pack_as_c(params: oracle.Params, c: Any, text: bytes) -> bytes:
    """A file as the exported program writes it: blocks of 65,536 bytes, in one lane or, if not shorter, as they are."""
    parts = []
    for first in range(0, len(text), 65536):
        part = text[first : first + 65536]
        parts.append((part, int(len(encode_lane(params, c, part)) + 4 < len(part))))
    return pack(params, c, parts)
