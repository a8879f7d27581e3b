"""Data that the ranks of a job exchange in an epoch, and its wire formats.

All noise is a function of the seed, so an epoch needs little: each rank sends the fitness of its own pairs (one sign a
pair), and every rank then makes the same update. With nudged activations the votes themselves are summed over the
ranks. Beside them travel the statistics of the scores, a flag (a signal that
the rank received) and the duration of its last update. One process alone exchanges nothing.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core import activations
from nanoegg_mlx.core.activations import Moments
from nanoegg_mlx.core.params import Params, leaves, split_leaves
from nanoegg_mlx.core.update import differences, fitness, fitness_of, step
from nanoegg_mlx.engines import Engine
from nanoegg_mlx.ranks import score_stats
from nanoegg_mlx.ranks.partition import members_of
from nanoegg_mlx.ranks.score_stats import ScoreStats
from nanoegg_mlx.ranks.world import World
from nanoegg_mlx.store.fitness_log import pack_fitness, unpack_fitness

_HEAD = struct.Struct(f"<Bd{score_stats.SIZE}s")
"""Head of a rank's message: flag, seconds of its last update, statistics of its scores. The signs (packed as in the
fitness log) or differences (int32) of its pairs follow."""


_NO_FITNESS = np.zeros(0, np.int8)


@dataclass(frozen=True)
class Gathered:
    """Fitness of all pairs and statistics of all scores, the same on every rank."""

    fitness: np.ndarray
    """(N/2,) int8, each pair's; (0,) with perturb = "activations"."""
    scores: ScoreStats
    flags: tuple[int, ...]
    """Each rank's flag."""
    seconds: float
    """Duration of the exchange: waiting for slower ranks, and the network. 0 for one process."""


class Exchange:
    """One rank's side of the exchange, epoch after epoch."""

    def __init__(self, config: Config, world: World) -> None:
        self._config, self._world = config, world
        self._counts = [len(members_of(config, world, rank)) // 2 for rank in range(world.size)]
        self._choice = UpdateChoice(config.update, world.size)
        self._update_seconds = 0.0

    @property
    def sharded(self) -> bool:
        """Whether in the next update each rank sums the votes of its own pairs only."""
        return self._choice.sharded

    def gather_fitness(self, scores: np.ndarray, epoch: int, flag: Callable[[], int], expected: float) -> Gathered:
        """Fitness of all pairs, from the scores of this rank's members.

        Args:
            scores: (members of this rank,) int32.
            epoch: number of the epoch.
            flag: called once; its result, 0 to 255, reaches all ranks.
            expected: seconds that the slowest rank may need until it calls this.

        Raises:
            JobError: a rank is lost.
        """
        fast = self._config.fast_fitness
        if self._world.size == 1:
            return Gathered(fitness(scores, fast), ScoreStats.of(scores), (flag(),), 0.0)
        gathered, bodies = self._gather(
            scores, _pack(scores, fast), _body_bytes(max(self._counts), fast), epoch, flag, expected
        )
        return replace(gathered, fitness=_unpack(bodies, self._counts, fast))

    def gather_scores(self, scores: np.ndarray, epoch: int, flag: Callable[[], int], expected: float) -> Gathered:
        """The same without fitness, for nudged activations, whose votes are summed instead."""
        if self._world.size == 1:
            return Gathered(_NO_FITNESS, ScoreStats.of(scores), (flag(),), 0.0)
        return self._gather(scores, b"", 0, epoch, flag, expected)[0]

    def _gather(
        self, scores: np.ndarray, body: bytes, width: int, epoch: int, flag: Callable[[], int], expected: float
    ) -> tuple[Gathered, list[np.ndarray]]:
        """The heads of all ranks' messages, and their bodies of `width` bytes."""
        head = _HEAD.pack(flag(), self._update_seconds, ScoreStats.of(scores).pack())
        message = np.frombuffer((head + body).ljust(_HEAD.size + width, b"\0"), np.uint8)
        started = time.perf_counter()
        rows = self._world.gather(message, f"the fitness of epoch {epoch}", expected=expected)
        seconds = time.perf_counter() - started
        heads = [_HEAD.unpack(row[: _HEAD.size].tobytes()) for row in rows]
        self._choice.record(max(head[1] for head in heads))
        stats = ScoreStats.sum(ScoreStats.unpack(head[2]) for head in heads)
        gathered = Gathered(_NO_FITNESS, stats, tuple(head[0] for head in heads), seconds)
        return gathered, [row[_HEAD.size :] for row in rows]

    def update(
        self, engine: Engine, params: Params, pair_fitness: np.ndarray, epoch: int, reads: np.ndarray | None = None
    ) -> Params:
        """The parameters after an epoch, the same bits on every rank.

        Either each rank sums the votes of all pairs (replicated), or each those of its own and the sums are added
        over the ranks (sharded).

        Args:
            engine: of this rank.
            params: leaf name -> int8 array; left as they are.
            pair_fitness: (N/2,) int8, of all pairs.
            epoch: number of the epoch.
            reads: (lanes, V) bool, the bytes among each lane's inputs, with `sparse_embedding`; else None.
        """
        started = time.perf_counter()
        if self._choice.sharded:
            params = self._sharded_update(engine, params, pair_fitness, epoch, reads)
        else:
            params = engine.update(params, pair_fitness, epoch, reads)
        self._update_seconds = time.perf_counter() - started
        return params

    def _sharded_update(
        self, engine: Engine, params: Params, pair_fitness: np.ndarray, epoch: int, reads: np.ndarray | None
    ) -> Params:
        config, world = self._config, self._world
        started = time.perf_counter()
        members = members_of(config, world)
        Z = engine.votes(params, pair_fitness, range(members.start // 2, members.stop // 2), epoch, reads)
        flat = mx.concatenate([Z[leaf.name].reshape(-1) for leaf in leaves(config)])
        mx.eval(flat)
        seconds = time.perf_counter() - started
        if flat.dtype == mx.int64:
            # int64 is for the worst case. Where the largest sums of all ranks fit int32, half the bytes suffice.
            most = np.array([np.abs(np.array(flat)).max()], np.int64).view(np.uint8)
            largest = world.gather(most, f"the largest votes of epoch {epoch}", expected=seconds)
            if np.ascontiguousarray(largest).view(np.int64).sum() < 2**31:
                flat = flat.astype(mx.int32)
        flat = world.sum(flat, f"the votes of epoch {epoch}", expected=seconds)
        return step(params, split_leaves(flat, config), config, epoch, reads)

    def sum_votes(self, sums: Moments, epoch: int) -> Moments:
        """The votes and variances of the whole population, from those of this rank's pairs."""
        if self._world.size == 1:
            return sums
        started = time.perf_counter()
        flat = activations.flatten(sums)
        mx.eval(flat)
        seconds = time.perf_counter() - started
        return activations.unflatten(self._world.sum(flat, f"the votes of epoch {epoch}", expected=seconds), sums)


class UpdateChoice:
    """The choice between a replicated and a sharded update: the configured one, or the faster by measurement.

    Both give the same bits. A replicated update takes as long for any number of ranks, since each sums the votes of the
    whole population. A sharded one takes a share of that time, but each rank sends the sums: up to 8 bytes for each
    parameter, 16 in the rare case that they need int64. `auto` tries each twice, and keeps the one that was faster the
    second time, as measured by the slowest rank.
    """

    _TRIALS = (False, True, False, True)

    def __init__(self, wanted: str, ranks: int) -> None:
        self.sharded = wanted == "sharded" and ranks > 1
        """Whether the next update is sharded."""
        self._seconds: list[float] | None = [] if wanted == "auto" and ranks > 1 else None

    def record(self, seconds: float) -> None:
        """Records the slowest rank's duration of the last update (0 before the first), the same number on all ranks."""
        if self._seconds is None:
            return
        self._seconds.append(seconds)
        done = len(self._seconds) - 1
        if done < len(self._TRIALS):
            self.sharded = self._TRIALS[done]
            return
        replicated, sharded = self._seconds[-2:]
        self.sharded, self._seconds = sharded < replicated, None


def _body_bytes(pairs: int, fast: bool) -> int:
    return -(-pairs // 5) if fast else 4 * pairs


def _pack(scores: np.ndarray, fast: bool) -> bytes:
    """The pairs of a rank: their signs, or their differences, since normalised fitness needs the rms of all pairs."""
    return pack_fitness(fitness(scores, fast=True), fast=True) if fast else differences(scores).astype("<i4").tobytes()


def _unpack(bodies: list[np.ndarray], counts: list[int], fast: bool) -> np.ndarray:
    """Fitness of all pairs, (N/2,) int8, from the bodies of all ranks' messages."""
    rows = [body[: _body_bytes(count, fast)] for body, count in zip(bodies, counts, strict=True)]
    if fast:
        parts = [unpack_fitness(row.tobytes(), count, fast) for row, count in zip(rows, counts, strict=True)]
        return np.concatenate(parts)
    return fitness_of(np.concatenate([row.view("<i4") for row in rows]), fast=False)
