"""One epoch of each estimator: score -> fitness -> update, or with nudged activations score -> votes -> step.

An estimator computes from the parameters and states that it is given, and changes neither. In a job of several
processes it scores the members of its rank; `ranks/exchange.py` adds what the other ranks have found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core import activations
from nanoegg_mlx.core.activations import Moments
from nanoegg_mlx.core.decorrelation import decorrelated
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.engines import Engine, training_engine
from nanoegg_mlx.ranks.exchange import Exchange, Gathered
from nanoegg_mlx.ranks.partition import members_of
from nanoegg_mlx.ranks.world import World
from nanoegg_mlx.store.tokens import Lanes, bytes_read

_SPAN_BYTES = 32 << 20
"""Tokens and new states handed to the engine at a time: bounds the memory of a large population beside its states."""


@dataclass(frozen=True)
class Estimate:
    """The outcome of an epoch."""

    scores: np.ndarray
    """(members of this rank,) int32, in sixteenths of a bit."""
    states: np.ndarray
    """(members of this rank, L, D) int8, after the epoch."""
    gathered: Gathered
    """Fitness, statistics of the scores and flags, of all ranks."""
    params: Params
    """After the update."""
    generate_seconds: float
    update_seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    """Fields of EpochResult that only this estimator has."""


@dataclass(frozen=True)
class Span:
    """Consecutive members of this rank and their text."""

    part: slice
    """Their place among the rank's members."""
    members: range
    lanes: np.ndarray
    """(members,) the lane that each reads."""


class Estimator:
    """Learning from perturbed weights, as the reference does (spec sections 3 to 7)."""

    def __init__(self, config: Config, lanes: Lanes, world: World) -> None:
        """Raises InputError if the engine is unavailable, or if there are more ranks than lanes."""
        self.config, self.lanes = config, lanes
        self.members = members_of(config, world)
        self.engine: Engine = training_engine(config.replace(threads=world.threads(config.threads)))
        self.exchange = Exchange(config, world)

    def epoch(self, params: Params, states: np.ndarray, epoch: int, flag: Callable[[], int]) -> Estimate:
        """Scores this rank's members and moves the parameters along the votes of all pairs.

        Args:
            params: leaf name -> int8 array.
            states: (members of this rank, L, D) int8.
            epoch: number of the epoch.
            flag: called after the members are scored; its result, 0 to 255, reaches all ranks.
        """
        started = time.perf_counter()
        scores, new_states = self._empty(states)
        inputs, targets = self.lanes.batch(epoch)
        for span in self._spans():
            scored = self.engine.score(
                params, span.members, epoch, inputs[span.lanes], targets[span.lanes], states[span.part]
            )
            scores[span.part], new_states[span.part] = scored.scores, scored.states
        scored_at = time.perf_counter()
        gathered = self.exchange.gather_fitness(scores, epoch, flag, expected=scored_at - started)
        sharded = self.exchange.sharded
        reads = bytes_read(inputs, self.config.vocab_size) if self.config.sparse_embedding else None
        moved = self.exchange.update(self.engine, params, gathered.fitness, epoch, reads)
        update_seconds = time.perf_counter() - scored_at - gathered.seconds
        return Estimate(
            scores,
            new_states,
            gathered,
            moved,
            scored_at - started,
            update_seconds,
            figures={"sharded": sharded, "engine_figures": self.engine.figures()},
        )

    def _spans(self) -> Iterator[Span]:
        """This rank's members, as many at a time as `_SPAN_BYTES` allows."""
        config = self.config
        size, cohort = _SPAN_BYTES // (2 * config.tokens_per_update + config.n_layer * config.n_embd), config.cohort
        size = max(size // cohort * cohort, cohort)
        for first in range(0, len(self.members), size):
            part = slice(first, min(first + size, len(self.members)))
            members = self.members[part]
            yield Span(part, members, np.arange(members.start, members.stop) // config.group)

    def _empty(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.empty(len(states), np.int32), np.empty_like(states)


class ActivationsEstimator(Estimator):
    """Learning from nudged activations (docs/activations.md)."""

    def epoch(self, params: Params, states: np.ndarray, epoch: int, flag: Callable[[], int]) -> Estimate:
        started = time.perf_counter()
        scores, new_states = self._empty(states)
        inputs, targets = self.lanes.batch(epoch)
        votes: Moments | None = None
        for span in self._spans():
            lanes = span.lanes[:: self.config.cohort]  # the members of a cohort read the same lane
            nudged = self.engine.nudge(params, span.members, epoch, inputs[lanes], targets[lanes], states[span.part])
            scores[span.part], new_states[span.part] = nudged.scores, nudged.states
            votes = nudged.sums if votes is None else activations.add_moments(votes, nudged.sums)
        assert votes is not None
        scored_at = time.perf_counter()
        gathered = self.exchange.gather_scores(scores, epoch, flag, expected=scored_at - started)
        votes = self.exchange.sum_votes(votes, epoch)
        moments = decorrelated(votes, self.config) if self.config.decorrelate else votes
        stepped = activations.step(params, moments, self.config, epoch)
        update_seconds = time.perf_counter() - scored_at - gathered.seconds
        figures = {
            "signal": stepped.signal,
            "credit_rms": activations.credit_rms(votes, self.config),
            "engine_figures": self.engine.figures(),
        }
        return Estimate(
            scores, new_states, gathered, stepped.params, scored_at - started, update_seconds, figures=figures
        )


def make_estimator(config: Config, lanes: Lanes, world: World) -> Estimator:
    """The estimator that `config.perturb` names. Raises InputError as `Estimator` does."""
    return (ActivationsEstimator if config.perturb == "activations" else Estimator)(config, lanes, world)
