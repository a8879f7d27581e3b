"""Engines carry out the two hot calls, score() and update(); all give the same bits. Chosen here, nowhere else."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.engines.mlx import MLXEngine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.params import Params
from nanoegg_mlx.score import Scored


class Engine(Protocol):
    """Two functions and a name."""

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
            exact: whether to add up normalised code lengths too.

        Returns:
            Scores, new states and, with `exact`, code lengths; the arguments are left as they were.
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
        InputError: the CPU engine is asked for, but its extension was not built or has no kernels for NANOEGG_ISA.
    """
    name = config.engine
    if name == "auto":
        name = "cpu" if native_problem() is None and mx.default_device() == mx.Device(mx.cpu) else "mlx"
    if name == "mlx":
        return MLXEngine(config)
    if problem := native_problem():
        raise InputError(f"engine = 'cpu' is not to be had: {problem}")
    from nanoegg_mlx.engines.cpu import CPUEngine

    return CPUEngine(config)


def native_problem() -> str | None:
    """Why the CPU engine cannot be used and how to get it, in one sentence; None where it can."""
    try:
        from nanoegg_mlx.engines import _native
    except ImportError:
        return "its extension was not built; install a C++17 compiler (g++ or clang++) and install nanoegg-mlx again."
    try:
        _native.info()
    except ValueError as error:
        return f"{error}."
    return None


__all__ = ["Engine", "MLXEngine", "make_engine", "native_problem"]
