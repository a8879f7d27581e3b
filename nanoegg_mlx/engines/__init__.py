"""Engines carry out the hot calls, score, logits and update; all give the same bits. Chosen here, nowhere else."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.core.score import Scored
from nanoegg_mlx.engines.mlx import MLXEngine
from nanoegg_mlx.errors import InputError


class Engine(Protocol):
    """Three functions and a name."""

    name: str

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
        """Lets each member read its tokens, under its own perturbation of `params`.

        Args:
            params: leaf name -> int8 array.
            members: consecutive members, starting at an even one and ending after an odd one.
            epoch: whose noise perturbs the members; None for the unperturbed model, where a "member" is any
                row of text.
            inputs, targets: (len(members), T) uint8.
            states: (len(members), L, D) int8.
            exact: whether each target's normalised code length is asked for too.

        Returns:
            Scores, new states and, with `exact`, code lengths; the arguments are left as they were.
        """
        ...

    def logits(self, params: Params, inputs: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the unperturbed model says about the byte after each one it reads, for rows of text.

        Args:
            params: leaf name -> int8 array.
            inputs: (N, T) uint8.
            states: (N, L, D) int8, left as they were.

        Returns:
            Logits (N, T, V) int8, and the new states.
        """
        ...

    def update(self, params: Params, fitness: np.ndarray, epoch: int) -> Params:
        """The parameters after an epoch in which pair p had fitness[p]; (N/2,) int8. `params` stay as they were."""
        ...

    def votes(self, params: Params, fitness: np.ndarray, pairs: range, epoch: int) -> dict[str, mx.array]:
        """The part of an update's sums that some consecutive pairs contribute.

        Args:
            params: for their shapes.
            fitness: (N/2,) int8, of all pairs.
            pairs: whose votes count; may be none.
            epoch: whose noise it is.

        Returns:
            Leaf name -> Z of the leaf's shape, `evolve.vote_dtype`. Summed over all pairs, `evolve.step` makes of it
            what `update` returns.
        """
        ...


def make_engine(config: Config) -> Engine:
    """The engine that `config.engine` names; `auto` is the CPU engine where MLX's default device is the CPU.

    Raises:
        InputError: the CPU engine is asked for, but its extension was not built; or the environment variable
            NANOEGG_ISA names an instruction set that it does not have here.
    """
    name = config.engine
    if name == "auto":
        name = "cpu" if native_problem() is None and _cpu_is_default() else "mlx"
    if name == "mlx":
        return MLXEngine(config)
    if problem := native_problem():
        raise InputError(f"engine = 'cpu' is not to be had: {problem}")
    from nanoegg_mlx.engines.cpu import CPUEngine, instruction_sets

    instruction_sets()
    return CPUEngine(config)


def native_problem() -> str | None:
    """Why the CPU engine cannot be used and how to get it, in one sentence; None where it can."""
    try:
        import nanoegg_mlx.engines._native  # noqa: F401
    except ModuleNotFoundError:
        return "its extension was not built; install a C++17 compiler (g++ or clang++) and install nanoegg-mlx again."
    except ImportError as error:
        return f"its extension cannot be loaded ({error}); install nanoegg-mlx again."
    return None


def missed_speed(config: Config) -> str | None:
    """One sentence for a run that `auto` left to MLX's CPU back end only because the CPU engine is not there."""
    problem = native_problem()
    if config.engine != "auto" or problem is None or not _cpu_is_default():
        return None
    return f"The CPU engine would be tens of times faster here, but {problem}"


def _cpu_is_default() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


__all__ = ["Engine", "MLXEngine", "make_engine", "missed_speed", "native_problem"]
