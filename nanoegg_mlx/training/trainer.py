"""Training: one epoch at a time, and nothing else. Reporting, validation and checkpoints are the caller's.

An epoch is a transaction: parameters, states and the epoch number change together at its end, so an interrupt in the
middle of one leaves the trainer as it was before it.

In a job of several processes (distributed.py) each rank scores the members of its share of the lanes. All noise is a
function of the seed, so what has to travel is one sign a pair; with it every rank makes the same update.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, check_params, init_params, leaves, split_leaves
from nanoegg_mlx.core.update import alpha_at, differences, fitness, fitness_of, step, threshold_at
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.ranks import score_stats as tally
from nanoegg_mlx.ranks.partition import gather_states, members_of
from nanoegg_mlx.ranks.score_stats import Tally
from nanoegg_mlx.ranks.world import World
from nanoegg_mlx.store.fitness_log import pack_fitness, unpack_fitness
from nanoegg_mlx.store.tokens import Lanes

_SPAN_BYTES = 32 << 20
"""Tokens and new states that are handed over at a time: bounds what a large population needs beside its states."""
_HEAD = struct.Struct(f"<Bd{tally.SIZE}s")
"""Of a rank's message about its members: its flag, the seconds of its last update, and the tally of its scores. The
pairs' signs or differences follow."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did."""

    epoch: int
    """Number of the epoch, from 0."""
    scores: np.ndarray
    """(N,) int32, each member's log-likelihood of its tokens in sixteenths of a bit; on one of several ranks those of
    its own members."""
    tally: Tally
    """Of the scores of all members."""
    fitness: np.ndarray
    """(N/2,) int8, each pair's."""
    alpha: float
    threshold: int
    """Of the Z-test, in sixteenths of a standard deviation."""
    moved: dict[str, float]
    """Share of entries that the update changed, under `matrix` and `vector`."""
    tokens: int
    """Tokens that the population read, N T."""
    generate_seconds: float
    exchange_seconds: float
    """Until all ranks' fitness was there: waiting for slower ranks, and the network. 0 for one process."""
    update_seconds: float
    sharded: bool = False
    """Whether each rank summed the votes of its own pairs only."""

    @property
    def losses(self) -> np.ndarray:
        """Each of the `scores` as a loss in bits per byte, float64."""
        return -self.scores / self._sixteenths

    @property
    def loss_mean(self) -> float:
        """Of all members, in bits per byte; so are the others."""
        return -self.tally.mean / self._sixteenths

    @property
    def loss_min(self) -> float:
        return -self.tally.most / self._sixteenths

    @property
    def loss_max(self) -> float:
        return -self.tally.least / self._sixteenths

    @property
    def loss_std(self) -> float:
        return self.tally.std / self._sixteenths

    @property
    def _sixteenths(self) -> int:
        """What a score of sixteenths of a bit is divided by: 16 T."""
        return 16 * (self.tokens // self.tally.count)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / (self.generate_seconds + self.exchange_seconds + self.update_seconds)


@dataclass(frozen=True)
class Epoch:
    """An epoch's outcome, not yet the trainer's state."""

    result: EpochResult
    params: Params
    states: np.ndarray
    """(N, L, D) int8, of the rank's own members."""
    flags: tuple[int, ...]
    """What each rank gave `propose` as its flag."""


class Trainer:
    """The state of a run and its one operation, `step`, in two halves for those who need to stop between them."""

    def __init__(
        self,
        config: Config,
        train_tokens: np.ndarray,
        *,
        params: Params | None = None,
        states: np.ndarray | mx.array | None = None,
        epoch: int = 0,
        world: World | None = None,
    ) -> None:
        """Starts a run, or continues one from what a checkpoint holds.

        Args:
            config: the run's configuration.
            train_tokens: (size,) uint8; may be memory-mapped.
            params: leaf name -> int8 array; initial ones of the seed if not given.
            states: (N, L, D) int8, every member's hidden state; zeros if not given. On one of several ranks those of
                its own members (shares.members_of).
            epoch: epochs already done.
            world: the job's processes; by default this one alone.

        Raises:
            InputError: tokens too few, of the wrong kind or outside the vocabulary, or arrays of other shapes
                than the config's.
        """
        self.config = config
        self.world = world = World() if world is None else world
        self.lanes = Lanes(train_tokens, config)
        self.members = members_of(config, world)
        self.params = init_params(config) if params is None else params
        check_params(self.params, config)
        shape = (len(self.members), config.n_layer, config.n_embd)
        self._states = np.zeros(shape, np.int8) if states is None else np.array(states)
        if self._states.shape != shape or self._states.dtype != np.int8:
            raise InputError(
                f"The member states are {self._states.dtype} of shape {self._states.shape}; population, n_layer and "
                f"n_embd make them int8 of shape {shape}."
            )
        self.epoch = epoch
        self.engine = make_engine(config.replace(threads=world.threads(config.threads)))
        self._choice = UpdateChoice(config.update, world.size)
        self._update_seconds = 0.0

    @property
    def states(self) -> mx.array:
        """(N, L, D) int8, every member's hidden state; on one of several ranks those of its own members."""
        return mx.array(self._states)

    def gather_states(self) -> np.ndarray | None:
        """(N, L, D) int8, every member's hidden state on rank 0, and None on the others. All ranks call it together."""
        return gather_states(self._states, self.config, self.world)

    def step(self) -> EpochResult:
        """One epoch: every member reads T tokens and is scored, then the parameters move along the votes."""
        epoch = self.propose()
        self.accept(epoch)
        return epoch.result

    def propose(self, flag: Callable[[], int] = lambda: 0) -> Epoch:
        """Computes the next epoch and changes nothing that it computes from.

        Args:
            flag: asked when the rank's members are scored; its answer, 0 to 255, reaches all ranks with this epoch.
        """
        started = time.perf_counter()
        scores, states = self._generate()
        generated = time.perf_counter()
        pair_fitness, total, flags, waited = self._exchange(scores, flag, generated - started)
        sharded = self._choice.sharded
        params = self._update(pair_fitness, sharded)
        finished = time.perf_counter()
        self._update_seconds = finished - generated - waited
        result = EpochResult(
            epoch=self.epoch,
            scores=scores,
            tally=total,
            fitness=pair_fitness,
            alpha=alpha_at(self.config, self.epoch),
            threshold=threshold_at(self.config, self.epoch),
            moved=moved_shares(self.config, self.params, params),
            tokens=self.config.population * self.config.tokens_per_update,
            generate_seconds=generated - started,
            exchange_seconds=waited,
            update_seconds=self._update_seconds,
            sharded=sharded,
        )
        return Epoch(result, params, states, flags)

    def accept(self, epoch: Epoch) -> None:
        """Makes the outcome of `propose` the trainer's state."""
        self.params, self._states, self.epoch = epoch.params, epoch.states, epoch.result.epoch + 1

    def _generate(self) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        inputs, targets = self.lanes.batch(self.epoch)
        scores = np.empty(len(self.members), np.int32)
        states = np.empty_like(self._states)
        span = max(_SPAN_BYTES // (2 * config.tokens_per_update + config.n_layer * config.n_embd) // 2 * 2, 2)
        for first in range(0, len(self.members), span):
            part = slice(first, min(first + span, len(self.members)))
            members = self.members[part]
            lanes = np.arange(members.start, members.stop) // config.group
            scored = self.engine.score(
                self.params, members, self.epoch, inputs[lanes], targets[lanes], self._states[part]
            )
            scores[part], states[part] = scored.scores, scored.states
        return scores, states

    def _exchange(
        self, scores: np.ndarray, flag: Callable[[], int], seconds: float
    ) -> tuple[np.ndarray, Tally, tuple[int, ...], float]:
        """From this rank's scores to every pair's fitness (N/2,), all scores' tally, the flags, and seconds waited."""
        config, world = self.config, self.world
        if world.size == 1:
            return fitness(scores, config.fast_fitness), Tally.of(scores), (flag(),), 0.0
        pairs = [len(members_of(config, world, rank)) // 2 for rank in range(world.size)]
        if config.fast_fitness:
            body = pack_fitness(fitness(scores, fast=True), fast=True)
            width = -(-max(pairs) // 5)
        else:
            body = differences(scores).astype(np.int32).tobytes()
            width = 4 * max(pairs)
        head = _HEAD.pack(flag(), self._update_seconds, Tally.of(scores).pack())
        mine = np.frombuffer((head + body).ljust(_HEAD.size + width, b"\0"), np.uint8)
        started = time.perf_counter()
        rows = world.gather(mine, f"the fitness of epoch {self.epoch}", expected=seconds)
        waited = time.perf_counter() - started
        heads = [_HEAD.unpack(row[: _HEAD.size].tobytes()) for row in rows]
        bodies = [row[_HEAD.size :] for row in rows]
        if config.fast_fitness:
            parts = [
                unpack_fitness(row[: -(-count // 5)].tobytes(), count, fast=True)
                for row, count in zip(bodies, pairs, strict=True)
            ]
            pair_fitness = np.concatenate(parts)
        else:
            parts = [row[: 4 * count].view(np.int32) for row, count in zip(bodies, pairs, strict=True)]
            pair_fitness = fitness_of(np.concatenate(parts), fast=False)
        self._choice.heard(max(head[1] for head in heads))
        total = Tally.sum(Tally.unpack(head[2]) for head in heads)
        return pair_fitness, total, tuple(head[0] for head in heads), waited

    def _update(self, pair_fitness: np.ndarray, sharded: bool) -> Params:
        if not sharded:
            return self.engine.update(self.params, pair_fitness, self.epoch)
        started = time.perf_counter()
        pairs = range(self.members.start // 2, self.members.stop // 2)
        Z = self.engine.votes(self.params, pair_fitness, pairs, self.epoch)
        flat = mx.concatenate([Z[leaf.name].reshape(-1) for leaf in leaves(self.config)])
        mx.eval(flat)
        seconds = time.perf_counter() - started
        if flat.dtype == mx.int64:
            # That is for the worst case; where the sums of all ranks are seen to fit, half the bytes do.
            most = np.array([np.abs(np.array(flat)).max()], np.int64).view(np.uint8)
            largest = self.world.gather(most, f"the largest votes of epoch {self.epoch}", expected=seconds)
            if np.ascontiguousarray(largest).view(np.int64).sum() < 2**31:
                flat = flat.astype(mx.int32)
        flat = self.world.sum(flat, f"the votes of epoch {self.epoch}", expected=seconds)
        return step(self.params, split_leaves(flat, self.config), self.config, self.epoch)


class UpdateChoice:
    """Whether a job's ranks each sum all votes, or each those of its own pairs: what is asked for, or measured faster.

    Both give the same bits. A replicated update takes as long for any number of ranks, since each sums the votes of the
    whole population; a sharded one takes a share of that, and makes each rank send the sums: up to 8 bytes for each
    parameter, 16 in the rare case that they need int64. `auto` tries each twice, and keeps what was faster the second
    time, as measured by the slowest rank.
    """

    _TRIALS = (False, True, False, True)

    def __init__(self, wanted: str, ranks: int) -> None:
        self.sharded = wanted == "sharded" and ranks > 1
        """What the next update is."""
        self._seconds: list[float] | None = [] if wanted == "auto" and ranks > 1 else None

    def heard(self, seconds: float) -> None:
        """Takes in how long the slowest rank's last update took, the same number on all ranks; 0 before the first."""
        if self._seconds is None:
            return
        self._seconds.append(seconds)
        done = len(self._seconds) - 1
        if done < len(self._TRIALS):
            self.sharded = self._TRIALS[done]
            return
        replicated, sharded = self._seconds[-2:]
        self.sharded, self._seconds = sharded < replicated, None


def moved_shares(config: Config, before: Params, after: Params) -> dict[str, float]:
    """The share of entries that differ, over all matrices and over all vectors."""
    changed = {"matrix": 0, "vector": 0}
    total = {"matrix": 0, "vector": 0}
    for leaf in leaves(config):
        changed[leaf.kind] += int(np.count_nonzero(np.array(before[leaf.name] != after[leaf.name])))
        total[leaf.kind] += before[leaf.name].size
    return {kind: changed[kind] / total[kind] for kind in total}
