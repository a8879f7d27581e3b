"""What a population's scores amount to, in integers: the same for any number of parts, added in any order."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_PACKED = struct.Struct("<qq16sqq")


@dataclass(frozen=True)
class Tally:
    """Of scores in sixteenths of a bit."""

    count: int = 0
    total: int = 0
    squares: int = 0
    """Sum of squares."""
    least: int = 2**62
    most: int = -(2**62)

    @classmethod
    def of(cls, scores: np.ndarray) -> Tally:
        """Args: scores, (N,) integers of less than 32 bits."""
        if not len(scores):
            return cls()
        return cls(
            len(scores), int(scores.sum(dtype=np.int64)), sum_of_squares(scores), int(scores.min()), int(scores.max())
        )

    @classmethod
    def sum(cls, parts: Iterable[Tally]) -> Tally:
        """The tally of all scores that the parts' are of."""
        parts = list(parts)
        return cls(
            sum(part.count for part in parts),
            sum(part.total for part in parts),
            sum(part.squares for part in parts),
            min(part.least for part in parts),
            max(part.most for part in parts),
        )

    def pack(self) -> bytes:
        """`SIZE` bytes that `unpack` reads."""
        return _PACKED.pack(self.count, self.total, self.squares.to_bytes(16, "little"), self.least, self.most)

    @classmethod
    def unpack(cls, packed: bytes) -> Tally:
        """The inverse of `pack`."""
        count, total, squares, least, most = _PACKED.unpack(packed)
        return cls(count, total, int.from_bytes(squares, "little"), least, most)

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def std(self) -> float:
        """The population's standard deviation."""
        return math.sqrt(self.count * self.squares - self.total**2) / self.count


SIZE = _PACKED.size


def sum_of_squares(values: np.ndarray) -> int:
    """The exact sum of the squares of (n,) integers of less than 33 bits, at most 2^31 of them."""
    squares = np.square(values.astype(np.int64)).view(np.uint64)
    # Two halves, neither of which can overflow where the whole could.
    return (int((squares >> np.uint64(32)).sum()) << 32) + int((squares & np.uint64(0xFFFFFFFF)).sum())
