"""Training: one epoch at a time, and nothing else. Reporting, validation and checkpoints are the caller's.

An epoch is a transaction: parameters, states and the epoch number change together at its end, so an interrupt in the
middle of one leaves the trainer as it was before it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.data import Lanes
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.evolve import alpha_at, fitness, threshold_at
from nanoegg_mlx.params import Params, check_params, init_params, leaves

_SPAN_BYTES = 32 << 20
"""Tokens and new states that are handed over at a time: bounds what a large population needs beside its states."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did."""

    epoch: int
    """Number of the epoch, from 0."""
    scores: np.ndarray
    """(N,) int32, each member's log-likelihood of its tokens in sixteenths of a bit."""
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
    update_seconds: float

    @property
    def losses(self) -> np.ndarray:
        """(N,) float64, each member's loss in bits per byte."""
        return -self.scores / (16 * (self.tokens // len(self.scores)))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / (self.generate_seconds + self.update_seconds)


@dataclass(frozen=True)
class Epoch:
    """An epoch's outcome, not yet the trainer's state."""

    result: EpochResult
    params: Params
    states: np.ndarray
    """(N, L, D) int8."""


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
    ) -> None:
        """Starts a run, or continues one from what a checkpoint holds.

        Args:
            config: the run's configuration.
            train_tokens: (size,) uint8; may be memory-mapped.
            params: leaf name -> int8 array; initial ones of the seed if not given.
            states: (N, L, D) int8, every member's hidden state; zeros if not given.
            epoch: epochs already done.

        Raises:
            InputError: tokens too few, of the wrong kind or outside the vocabulary, or arrays of other shapes
                than the config's.
        """
        self.config = config
        self.lanes = Lanes(train_tokens, config)
        self.params = init_params(config) if params is None else params
        check_params(self.params, config)
        shape = (config.population, config.n_layer, config.n_embd)
        self._states = np.zeros(shape, np.int8) if states is None else np.array(states)
        if self._states.shape != shape or self._states.dtype != np.int8:
            raise InputError(
                f"The member states are {self._states.dtype} of shape {self._states.shape}; population, n_layer and "
                f"n_embd make them int8 of shape {shape}."
            )
        self.epoch = epoch
        self.engine = make_engine(config)

    @property
    def states(self) -> mx.array:
        """(N, L, D) int8, every member's hidden state."""
        return mx.array(self._states)

    def step(self) -> EpochResult:
        """One epoch: every member reads T tokens and is scored, then the parameters move along the votes."""
        epoch = self.propose()
        self.accept(epoch)
        return epoch.result

    def propose(self) -> Epoch:
        """Computes the next epoch and changes nothing."""
        started = time.perf_counter()
        scores, states = self._generate()
        generated = time.perf_counter()
        pair_fitness = fitness(scores, self.config.fast_fitness)
        params = self.engine.update(self.params, pair_fitness, self.epoch)
        finished = time.perf_counter()
        result = EpochResult(
            epoch=self.epoch,
            scores=scores,
            fitness=pair_fitness,
            alpha=alpha_at(self.config, self.epoch),
            threshold=threshold_at(self.config, self.epoch),
            moved=moved_shares(self.config, self.params, params),
            tokens=self.config.population * self.config.tokens_per_update,
            generate_seconds=generated - started,
            update_seconds=finished - generated,
        )
        return Epoch(result, params, states)

    def accept(self, epoch: Epoch) -> None:
        """Makes the outcome of `propose` the trainer's state."""
        self.params, self._states, self.epoch = epoch.params, epoch.states, epoch.result.epoch + 1

    def _generate(self) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        inputs, targets = self.lanes.batch(self.epoch)
        scores = np.empty(config.population, np.int32)
        states = np.empty_like(self._states)
        lanes = np.arange(config.population) // config.group
        span = max(_SPAN_BYTES // (2 * config.tokens_per_update + states[0].size) // 2 * 2, 2)
        for first in range(0, config.population, span):
            members = range(first, min(first + span, config.population))
            part = slice(members.start, members.stop)
            scored = self.engine.score(
                self.params, members, self.epoch, inputs[lanes[part]], targets[lanes[part]], self._states[part]
            )
            scores[part], states[part] = scored.scores, scored.states
        return scores, states


def moved_shares(config: Config, before: Params, after: Params) -> dict[str, float]:
    """The share of entries that differ, over all matrices and over all vectors."""
    changed = {"matrix": 0, "vector": 0}
    total = {"matrix": 0, "vector": 0}
    for leaf in leaves(config):
        changed[leaf.kind] += int(np.count_nonzero(np.array(before[leaf.name] != after[leaf.name])))
        total[leaf.kind] += before[leaf.name].size
    return {kind: changed[kind] / total[kind] for kind in total}
