"""Engines run the hot calls: scores and predictions, coding, votes and updates. All give the same bits. This module
chooses one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.activations import Nudged
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.core.score import Scored
from nanoegg_mlx.engines.machine import mlx_on_cpu
from nanoegg_mlx.engines.mlx import MLXEngine
from nanoegg_mlx.errors import InputError


class Engine(Protocol):
    """Eight functions and a name."""

    @property
    def name(self) -> str:
        """One of the values of `config.engine`."""
        ...

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
        """Scores each member on its tokens, under its own perturbation of `params`.

        Args:
            params: leaf name -> int8 array.
            members: consecutive members, starting at an even one and ending after an odd one.
            epoch: selects the noise; None for the unperturbed model, where a "member" is any row of text.
            inputs, targets: (len(members), T) uint8.
            states: (len(members), L, D) int8.
            exact: whether to return each target's normalised code length too.

        Returns:
            Scores, new states and, with `exact`, code lengths. The arguments are not changed.
        """
        ...

    def logits(self, params: Params, inputs: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The unperturbed model's predictions of the byte after each input byte, for rows of text.

        Args:
            params: leaf name -> int8 array.
            inputs: (N, T) uint8.
            states: (N, L, D) int8, not changed.

        Returns:
            Logits (N, T, V) int8, and the new states.
        """
        ...

    def encode(self, params: Params, lanes: Sequence[bytes]) -> list[bytes]:
        """The streams of lanes of text, coded from zero states (docs/compressed-format.md).

        Args:
            params: leaf name -> int8 array, of a vocabulary of 256.
            lanes: their sizes differ by at most one.
        """
        ...

    def decode(self, params: Params, streams: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
        """The lanes of text of streams, one for each of `sizes`; damaged streams are those of another text."""
        ...

    def nudge(
        self, params: Params, members: range, epoch: int, inputs: np.ndarray, targets: np.ndarray, states: np.ndarray
    ) -> Nudged:
        """Scores each member on its tokens under nudged activations, and sums the votes.

        Args:
            params: leaf name -> int8 array.
            members: consecutive members, whole cohorts (pairs, or without `config.antithetic` lanes).
            epoch: selects the coins.
            inputs, targets: (len(members) // config.cohort, tokens_per_update) uint8, one row a cohort.
            states: (len(members), L, D) int8.

        Returns:
            Scores, new states, and the votes with their variances. The arguments are not changed.
        """
        ...

    def update(self, params: Params, fitness: np.ndarray, epoch: int, reads: np.ndarray | None = None) -> Params:
        """The parameters after an epoch.

        Args:
            params: leaf name -> int8 array, not changed.
            fitness: (N/2,) int8, one a pair.
            epoch: selects the noise and the threshold.
            reads: (lanes, V) bool, the bytes among each lane's inputs of the epoch, with `sparse_embedding`; else None.
        """
        ...

    def votes(
        self, params: Params, fitness: np.ndarray, pairs: range, epoch: int, reads: np.ndarray | None = None
    ) -> dict[str, mx.array]:
        """Votes Z of consecutive pairs: their part of an update's sums.

        Args:
            params: for their shapes.
            fitness: (N/2,) int8, of all pairs.
            pairs: the pairs; may be empty.
            epoch: selects the noise.
            reads: of all lanes, as in `update`.

        Returns:
            Leaf name -> Z of the leaf's shape, `core.update.vote_dtype`. From the sum over all pairs `core.update.step`
            computes the result of `update`.
        """
        ...

    def figures(self) -> dict[str, Any]:
        """Figures about the engine itself, for the metrics of the epoch just done; JSON types, most often none."""
        ...


def make_engine(config: Config) -> Engine:
    """The engine that `config.engine` names.

    `auto` is the one that a training run of this shape found to be the fastest on this machine. Before there was one,
    it is the CPU engine where MLX's default device is the CPU, else the MLX engine.

    Raises:
        InputError: the CPU engine is needed, but its extension was not built; or the environment variable
            NANOEGG_ISA names an instruction set that is unavailable.
    """
    name, problem = config.engine, native_problem()
    if name == "mlx" or (name == "auto" and problem):
        return MLXEngine(config)
    if problem:
        raise InputError(f"engine is {name!r}, which is unavailable: {problem}")
    from nanoegg_mlx.engines.both import BothEngine
    from nanoegg_mlx.engines.cpu import CPUEngine, instruction_sets
    from nanoegg_mlx.engines.speeds import recall

    instruction_sets()
    if name == "auto":
        speeds = recall(config)
        name = speeds.best if speeds else "cpu" if mlx_on_cpu() else "mlx"
    engines: dict[str, type[Engine]] = {"cpu": CPUEngine, "mlx": MLXEngine, "both": BothEngine}
    return engines[name](config)  # type: ignore[call-arg]


def training_engine(config: Config) -> Engine:
    """`make_engine` for a training run, where `auto` measures both engines if the run is long enough.

    Raises InputError as `make_engine` does.
    """
    if config.engine == "auto" and native_problem() is None:
        from nanoegg_mlx.engines.auto import AutoEngine, pays

        if pays(config):
            return AutoEngine(config)
    return make_engine(config)


def native_problem() -> str | None:
    """The reason why the CPU engine is unavailable, and the remedy; None if it is available."""
    try:
        import nanoegg_mlx.engines._native  # noqa: F401
    except ModuleNotFoundError:
        return "its extension was not built; install a C++17 compiler (g++ or clang++) and install nanoegg-mlx again."
    except ImportError as error:
        return f"its extension cannot be loaded ({error}); install nanoegg-mlx again."
    return None


def missed_speed(config: Config) -> str | None:
    """A warning for `auto` on MLX's CPU back end, if the CPU engine is unavailable; else None."""
    problem = native_problem()
    if config.engine != "auto" or problem is None or not mlx_on_cpu():
        return None
    return f"The CPU engine would be tens of times faster here, but {problem}"


__all__ = ["Engine", "MLXEngine", "make_engine", "missed_speed", "native_problem", "training_engine"]
