"""Checks of what EggRoll receives: settings, parameters, inputs, fitness. Each raises InputError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import mlx.core as mx
import numpy as np

from nanoegg_mlx.eggroll.noise import NoiseKind
from nanoegg_mlx.eggroll.shaping import Baseline, Shaping
from nanoegg_mlx.eggroll.trees import Tree, flat
from nanoegg_mlx.errors import InputError


def check_settings(
    *,
    population: int,
    sigma: float,
    rank: int,
    antithetic: bool,
    baseline: Baseline,
    fitness_shaping: Shaping,
    noise: NoiseKind,
    seed: int,
    chunk: int,
) -> None:
    """Checks the settings of EggRoll, which have the names of its arguments."""
    known_baseline = baseline in ("none", "mean") if isinstance(baseline, str) else math.isfinite(baseline)
    rules = (
        (population >= 1, "population", population, "at least 1"),
        (not (antithetic and population % 2), "population", population, "even, for antithetic pairs"),
        (0 < sigma < math.inf, "sigma", sigma, "a positive number"),
        (rank >= 1, "rank", rank, "at least 1"),
        (known_baseline, "baseline", baseline, "'none', 'mean' or a number"),
        _choice("fitness_shaping", fitness_shaping, get_args(Shaping)),
        _choice("noise", noise, get_args(NoiseKind)),
        (0 <= seed < 1 << 64, "seed", seed, "in [0, 2^64)"),
        (chunk >= 1, "chunk", chunk, "at least 1"),
        (not (antithetic and chunk % 2), "chunk", chunk, "even, for antithetic pairs"),
    )
    for holds, name, value, allowed in rules:
        if not holds:
            raise InputError(f"{name} is {value!r}; it must be {allowed}.")


def _choice(name: str, value: object, allowed: Sequence[str]) -> tuple[bool, str, object, str]:
    """The rule of a setting with a list of allowed values."""
    return value in allowed, name, value, f"one of {', '.join(allowed)}"


def check_parameters(leaves: dict[str, Any]) -> None:
    """Checks that there are parameters, that each is an array of floats, and that none has two names."""
    if not leaves:
        raise InputError("The model has no trainable parameters; it must have at least one.")
    first_name: dict[int, str] = {}
    for name, leaf in leaves.items():
        if not (isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)):
            kind = str(leaf.dtype).removeprefix("mlx.core.") if isinstance(leaf, mx.array) else type(leaf).__name__
            raise InputError(
                f"Parameter {name} is of type {kind}; it must be an array of floats (or frozen, or left out)."
            )
        # An array under two names would get the noise of both.
        first = first_name.setdefault(id(leaf), name)
        if first != name:
            raise InputError(
                f"Parameters {first} and {name} are one array; they must be different arrays: copy one, or use its "
                "layer under one name (nn.Embedding.as_linear ties embeddings)."
            )


def mapped_positions(inputs: Sequence[Tree], in_axes: Any, population: int) -> list[int]:
    """Positions of the inputs that have a leading axis of members.

    Args:
        in_axes: None (shared by all members) or 0 (a leading axis of members): one for all inputs, or a tuple with one
            for each.
    """
    axes = tuple(in_axes) if isinstance(in_axes, tuple | list) else (in_axes,) * len(inputs)
    if len(axes) != len(inputs) or not all(axis in (None, 0) for axis in axes):
        raise InputError(f"in_axes is {in_axes!r}; it must be None or 0, or a tuple of {len(inputs)} of them.")
    mapped = [position for position, axis in enumerate(axes) if axis == 0]
    for position in mapped:
        for x in flat(inputs[position]).values():
            shape = np.shape(x)
            if not shape or shape[0] != population:
                raise InputError(
                    f"An input with in_axes 0 has shape {shape}; it must have a leading axis of {population} members."
                )
    return mapped


def fitness_values(fitness: mx.array | np.ndarray | Sequence[float], population: int) -> np.ndarray:
    """The fitness as float64 (N,)."""
    # NumPy has no bfloat16: an MLX array goes through float32.
    values = np.array(fitness.astype(mx.float32) if isinstance(fitness, mx.array) else fitness, np.float64)
    if values.shape != (population,):
        raise InputError(
            f"The fitness has shape {values.shape}; it must have one number for each of {population} members."
        )
    return values
