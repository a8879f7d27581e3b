"""The range coder of compressed files (docs/compressed-format.md): the definition, in Python's integers.

A stream is a number between 0 and 1, written in base 256. Each byte of the text narrows the interval of numbers that
are left to a part of it, in proportion to the byte's frequency. All that a decoder needs is the same frequencies.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from nanoegg_mlx.core.fixed_point import EXP2

_SIZE = 64
_WHOLE = 1 << _SIZE
_BOTTOM = 1 << (_SIZE - 8)
"""A range below it is multiplied by 256."""


def cumulative(logits: np.ndarray) -> np.ndarray:
    """F(0), F(1), ..., F(255) and the sum T of the frequencies EXP2[logits + 128].

    Args:
        logits: (..., 256) int8.

    Returns:
        (..., 257) int64, at most 2^28.
    """
    sums = np.zeros((*logits.shape[:-1], logits.shape[-1] + 1), np.int64)
    np.cumsum(np.array(EXP2)[logits.astype(np.int64) + 128], axis=-1, out=sums[..., 1:])
    return sums


class Encoder:
    """Writes a stream: `put` each byte, then `finish`."""

    def __init__(self) -> None:
        self._low, self._range = 0, _WHOLE - 1
        self._written = bytearray()

    def put(self, byte: int, sums: Sequence[int]) -> None:
        """Adds a byte with the frequencies of `cumulative`, as Python integers."""
        r = self._range // sums[-1]
        self._set_low(self._low + r * sums[byte])
        self._range = r * (sums[byte + 1] - sums[byte])
        while self._range < _BOTTOM:
            self._shift()
            self._range <<= 8

    def finish(self) -> bytes:
        """The whole stream: as few more bytes as name a number of the interval, without zeros at the end."""
        for count in range(9):
            unit = 1 << (_SIZE - 8 * count)
            value = -(-self._low // unit) * unit
            if value < self._low + self._range:
                break
        self._set_low(value)
        for _ in range(count):
            self._shift()
        return bytes(self._written).rstrip(b"\0")

    def _set_low(self, low: int) -> None:
        if low >= _WHOLE:  # a carry
            at = len(self._written) - 1
            while self._written[at] == 255:
                self._written[at] = 0
                at -= 1
            self._written[at] += 1
        self._low = low % _WHOLE

    def _shift(self) -> None:
        self._written.append(self._low >> (_SIZE - 8))
        self._low = (self._low << 8) % _WHOLE


class Decoder:
    """Reads a stream; any bytes are the stream of some text. Zeros follow the last byte."""

    def __init__(self, stream: bytes) -> None:
        self._stream, self._at = stream, 0
        self._code, self._range = 0, _WHOLE - 1
        for _ in range(8):
            self._shift()

    def get(self, sums: Sequence[int]) -> int:
        """The next byte, given the frequencies of `cumulative` as Python integers."""
        r = self._range // sums[-1]
        byte = bisect_right(sums, min(self._code // r, sums[-1] - 1)) - 1
        self._code -= r * sums[byte]
        self._range = r * (sums[byte + 1] - sums[byte])
        while self._range < _BOTTOM:
            self._shift()
            self._range <<= 8
        return byte

    def _shift(self) -> None:
        following = self._stream[self._at] if self._at < len(self._stream) else 0
        self._at += 1
        self._code = (self._code << 8 | following) % _WHOLE
