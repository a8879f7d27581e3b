"""The work of one call of an engine, which can be cut into parts of consecutive members and joined again.

Scores and states of members are independent, and votes are sums, so parts give the bits of the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy as np

from nanoegg_mlx.core.activations import Nudged, add_moments
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.core.score import Scored
from nanoegg_mlx.engines.cpu import CPUEngine, as_nudged, as_scored

if TYPE_CHECKING:
    from nanoegg_mlx.engines import Engine

R = TypeVar("R")


@dataclass(frozen=True)
class Work(ABC, Generic[R]):
    """The arguments of a method of `Engine` whose result is R."""

    params: Params
    numbers: range
    """The members."""
    epoch: int | None
    inputs: np.ndarray
    targets: np.ndarray
    states: np.ndarray

    @property
    def members_per_row(self) -> int:
        """Members that read one row of the text: a member, or the pair or lane whose scores are compared."""
        return max(len(self.numbers) // max(len(self.inputs), 1), 1)

    @property
    @abstractmethod
    def kind(self) -> str:
        """Calls of one kind have comparable speeds."""

    @property
    def grain(self) -> int:
        """Consecutive members that must stay together: a pair, or a lane with a baseline."""
        return max(self.members_per_row, 2)

    @property
    def members(self) -> int:
        """The number of members."""
        return len(self.numbers)

    @property
    def tokens(self) -> int:
        """T, that each member reads."""
        return int(self.inputs.shape[1])

    def part(self, first: int, last: int, tokens: int | None = None) -> Self:
        """The work of the members `first` to `last`, by position in this work, on the first `tokens` tokens.

        Both are multiples of `grain`.
        """
        rows = slice(first // self.members_per_row, last // self.members_per_row)
        return replace(
            self,
            numbers=self.numbers[first:last],
            inputs=self.inputs[rows, :tokens],
            targets=self.targets[rows, :tokens],
            states=self.states[first:last],
        )

    @abstractmethod
    def on(self, engine: Engine) -> R:
        """The result, from an engine."""

    @abstractmethod
    def prepared(self, engine: CPUEngine, check: Callable[[], None]) -> Callable[[], R]:
        """The rest of the work after all that needs MLX, which may run on any thread; `check` can end it."""

    @abstractmethod
    def joined(self, results: Sequence[R]) -> R:
        """The result of consecutive parts, from theirs."""


@dataclass(frozen=True)
class ScoreWork(Work[Scored]):
    """Arguments of `Engine.score`."""

    exact: bool = False

    @property
    def kind(self) -> str:
        return "validation" if self.epoch is None else "score"

    def on(self, engine: Engine) -> Scored:
        return engine.score(
            self.params, self.numbers, self.epoch, self.inputs, self.targets, self.states, exact=self.exact
        )

    def prepared(self, engine: CPUEngine, check: Callable[[], None]) -> Callable[[], Scored]:
        call = engine.score_call(
            self.params, self.numbers, self.epoch, self.inputs, self.targets, self.states, self.exact, check
        )
        return lambda: as_scored(call())

    def joined(self, results: Sequence[Scored]) -> Scored:
        lengths = [result.code_lengths for result in results if result.code_lengths is not None]
        return Scored(
            np.concatenate([result.scores for result in results]),
            np.concatenate([result.states for result in results]),
            np.concatenate(lengths) if lengths else None,
        )


@dataclass(frozen=True)
class NudgeWork(Work[Nudged]):
    """Arguments of `Engine.nudge`."""

    epoch: int

    @property
    def kind(self) -> str:
        return "nudge"

    def on(self, engine: Engine) -> Nudged:
        return engine.nudge(self.params, self.numbers, self.epoch, self.inputs, self.targets, self.states)

    def prepared(self, engine: CPUEngine, check: Callable[[], None]) -> Callable[[], Nudged]:
        call = engine.nudge_call(self.params, self.numbers, self.epoch, self.inputs, self.targets, self.states, check)
        return lambda: as_nudged(call())

    def joined(self, results: Sequence[Nudged]) -> Nudged:
        return Nudged(
            np.concatenate([result.scores for result in results]),
            np.concatenate([result.states for result in results]),
            reduce(add_moments, [result.sums for result in results]),
        )
