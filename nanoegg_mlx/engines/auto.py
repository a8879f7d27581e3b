"""`engine = "auto"` of a training run: the first members of its first epoch are scored by both engines in turn.

What a user waits for is a fraction of a second, once for each shape of run and machine (speeds.py keeps the result),
and most of it is work that the epoch needs anyway: the scores count, since results do not depend on the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.activations import Nudged
from nanoegg_mlx.core.params import Params, matrix_entries
from nanoegg_mlx.core.score import Scored
from nanoegg_mlx.engines import Engine, make_engine
from nanoegg_mlx.engines.cpu import CPUEngine
from nanoegg_mlx.engines.machine import mlx_on_cpu
from nanoegg_mlx.engines.mlx import MLXEngine
from nanoegg_mlx.engines.speeds import Speeds, recall, remember
from nanoegg_mlx.engines.work import NudgeWork, ScoreWork, Work

R = TypeVar("R")

_LEAST_PRODUCTS = 10**13
"""Multiply-adds of a run below which it is not worth measuring: half a minute of two cores."""
_MOST_SECONDS = 0.5
"""Of one part of the measurement, if the time of the part before predicts it."""
_MOST_TRIED = 2048
"""Members of MLX's part, enough to fill a GPU."""
_HOPELESS = 0.1
"""Of the CPU engine's speed. If MLX's first tokens are slower, they decide."""


def pays(config: Config) -> bool:
    """Whether a run is long enough to repay the measurement."""
    tokens = config.num_epochs * config.population * config.tokens_per_update
    return tokens * matrix_entries(config) >= _LEAST_PRODUCTS


class AutoEngine:
    """`engines.Engine` that becomes the fastest one in the first epoch of training."""

    def __init__(self, config: Config) -> None:
        self.config = config
        speeds = recall(config)
        self._engine: Engine = make_engine(config)
        self._measured = speeds is not None
        self._figures = _figures(speeds, self._engine.name, cached=True) if speeds else {}

    @property
    def name(self) -> str:
        """'auto' until the measurement."""
        return self._engine.name if self._measured else "auto"

    def score(
        self,
        params: Params,
        members: range,
        epoch: int | None,
        inputs: np.ndarray,
        targets: np.ndarray,
        states: np.ndarray,
        exact: bool = False,
    ) -> Scored:
        work = ScoreWork(params, members, epoch, inputs, targets, states, exact)
        return work.on(self._engine) if self._measured or epoch is None else self._first(work)

    def logits(self, params: Params, inputs: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._engine.logits(params, inputs, states)

    def encode(self, params: Params, lanes: Sequence[bytes]) -> list[bytes]:
        return self._engine.encode(params, lanes)

    def decode(self, params: Params, streams: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
        return self._engine.decode(params, streams, sizes)

    def nudge(
        self, params: Params, members: range, epoch: int, inputs: np.ndarray, targets: np.ndarray, states: np.ndarray
    ) -> Nudged:
        work = NudgeWork(params, members, epoch, inputs, targets, states)
        return work.on(self._engine) if self._measured else self._first(work)

    def update(self, params: Params, fitness: np.ndarray, epoch: int, reads: np.ndarray | None = None) -> Params:
        return self._engine.update(params, fitness, epoch, reads)

    def votes(
        self, params: Params, fitness: np.ndarray, pairs: range, epoch: int, reads: np.ndarray | None = None
    ) -> dict[str, mx.array]:
        return self._engine.votes(params, fitness, pairs, epoch, reads)

    def figures(self) -> dict[str, Any]:
        """The measurement, once, and the figures of the engine that it chose."""
        own, self._figures = self._figures, {}
        return own | self._engine.figures()

    def _first(self, work: Work[R]) -> R:
        measured = measure(work, CPUEngine(self.config), MLXEngine(self.config))
        remember(self.config, measured.speeds)
        self._engine, self._measured = make_engine(self.config), True
        self._figures = _figures(measured.speeds, self._engine.name, cached=False)
        results, done = list(measured.results), measured.members
        if done < work.members:
            results.append(work.part(done, work.members).on(self._engine))
        return work.joined(results)


class Measured(NamedTuple, Generic[R]):
    """A measurement, and the work that it has done."""

    speeds: Speeds
    results: list[R]
    """Of the first members, in parts."""
    members: int
    """Members that have a result."""


def measure(work: Work[R], cpu: CPUEngine, mlx: MLXEngine) -> Measured[R]:
    """The speeds of both engines, one after the other, each warmed up.

    The CPU engine scores members in growing parts, since many members share each load of the weights. MLX reads a few
    tokens to compile its step; these also predict its time for real members, which it scores unless that would be slow
    or long.
    """
    results: list[R] = []

    def scored(engine: Engine, first: int, last: int) -> float:
        """Scores members for good; returns the seconds."""
        part = work.part(first, last)
        return _seconds(lambda: results.append(part.on(engine)))

    grain = work.grain
    work.part(0, grain, 1).on(cpu)
    done, width, most = 0, 2 * grain, max(work.members // (2 * grain) * grain, grain)
    seconds = cpu_speed = 0.0
    while done < most and 4 * seconds < _MOST_SECONDS:
        width *= 4
        first, done = done, min(done + width, most)
        seconds = scored(cpu, first, done)
        cpu_speed = max(cpu_speed, (done - first) * work.tokens / seconds)
    # A GPU takes a whole chunk of members in the time of a few.
    wanted = 4 if mlx_on_cpu() else min(mlx.chunk, _MOST_TRIED)
    width = min(max(wanted, grain), work.members - done) // grain * grain
    tried = slice(done, done + width) if width else slice(0, grain)
    seconds = _predicted(work.part(tried.start, tried.stop), mlx)
    mlx_speed = (tried.stop - tried.start) * work.tokens / seconds
    if width and seconds <= _MOST_SECONDS and mlx_speed >= _HOPELESS * cpu_speed:
        mlx_speed = width * work.tokens / scored(mlx, done, done + width)
        done += width
    # Rounded here, once: metrics, messages and the cache then have the same figure.
    return Measured(Speeds(cpu_speed, max(round(mlx_speed, 1), 0.1)), results, done)


def _predicted(part: Work[R], mlx: MLXEngine) -> float:
    """Seconds that MLX will take for a part of the work, from its times for one token and for three."""
    one, three = part.part(0, part.members, 1), part.part(0, part.members, 3)
    one.on(mlx)  # compiles
    beginning = _seconds(lambda: one.on(mlx))
    if part.tokens <= 1 or beginning > _MOST_SECONDS:
        return beginning * part.tokens
    more = max(_seconds(lambda: three.on(mlx)) - beginning, 1e-6) / (three.tokens - 1)
    return beginning + more * (part.tokens - 1)


def _figures(speeds: Speeds, chosen: str, cached: bool) -> dict[str, Any]:
    return {"engines": {"chosen": chosen, "cpu": round(speeds.cpu), "mlx": round(speeds.mlx, 1), "cached": cached}}


def _seconds(compute: Callable[[], object]) -> float:
    started = time.perf_counter()
    compute()
    return max(time.perf_counter() - started, 1e-9)
