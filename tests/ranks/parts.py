"""One of several ranks, for tests that exchange no messages."""

from __future__ import annotations

from nanoegg_mlx.ranks.world import World


class Part(World):
    """A rank that cannot communicate."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
