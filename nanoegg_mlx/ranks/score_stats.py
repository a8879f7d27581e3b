"""Count, mean, deviation and extremes of a population's scores, in integers: exact for any partition and order."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nanoegg_mlx.core.update import sum_of_squares

_PACKED = struct.Struct("<qq16sqq")
SIZE = _PACKED.size
"""Bytes of a packed ScoreStats."""


@dataclass(frozen=True)
class ScoreStats:
    """Sums of scores in sixteenths of a bit."""

    count: int = 0
    total: int = 0
    squares: int = 0
    """Sum of squares."""
    least: int = 2**62
    most: int = -(2**62)

    @classmethod
    def of(cls, scores: np.ndarray) -> ScoreStats:
        """Args: scores, (N,) integers of less than 32 bits."""
        if not len(scores):
            return cls()
        return cls(
            len(scores), int(scores.sum(dtype=np.int64)), sum_of_squares(scores), int(scores.min()), int(scores.max())
        )

    @classmethod
    def sum(cls, parts: Iterable[ScoreStats]) -> ScoreStats:
        """The statistics of the union of the parts."""
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
    def unpack(cls, packed: bytes) -> ScoreStats:
        """The inverse of `pack`."""
        count, total, squares, least, most = _PACKED.unpack(packed)
        return cls(count, total, int.from_bytes(squares, "little"), least, most)

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def std(self) -> float:
        """The population standard deviation."""
        return math.sqrt(self.count * self.squares - self.total**2) / self.count
