"""Saturation of weights and activations: the share of the int8 range that they use.

Values do not overflow, they saturate. A value at -127 or 127 cannot grow further, and a residual stream or a gate that
stays at the limit no longer works. Values near zero are a problem too: if the mean magnitude is below 1, the divisor of
a norm is 0 and its output is a constant. The activations come from the definition of the model (the `tap` of
`model.forward`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import MAX_INT8
from nanoegg_mlx.core.model import UNPERTURBED, forward, norm_divisor
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.core.score import resident_weights
from nanoegg_mlx.store.tokens import check_vocabulary

KINDS = {
    "x": "residual stream before the layer",
    "y": "norm of x (ln1, at the end ln_out)",
    "f": "gate, 0 to 254",
    "c": "candidate",
    "h": "new state",
    "r": "residual stream between minGRU and MLP",
    "z": "norm of r (ln2)",
    "hidden": "hidden layer of the MLP",
    "logits": "logits",
}
_NORMED = {"x", "r"}


@dataclass(frozen=True)
class LeafFigures:
    """Figures of a parameter leaf, or of one layer of it."""

    name: str
    layer: int | None
    """None for the whole leaf."""
    shape: tuple[int, ...]
    mean: float
    std: float
    saturated: float
    """Share of entries at -127 or 127."""
    entropy: float
    """Entropy of the distribution of the entries' values, in bits; 8 for values spread evenly over the range."""


@dataclass(frozen=True)
class ActivationFigures:
    """Figures of one kind of activation in one layer, over all tokens."""

    name: str
    layer: int
    low: float
    """Share at the lower end: -127, or 0 for a gate."""
    high: float
    """Share at the upper end: 127, or 254 for a gate."""
    mean_abs: float
    zero_divisors: float | None
    """Share of tokens for which the norm of this activation has the divisor 0; None for activations without a norm."""


def inspect_params(params: Params) -> list[LeafFigures]:
    """Returns the figures of every leaf; those of its layers follow a stacked leaf."""
    figures = []
    for name, value in params.items():
        array = np.array(value)
        figures.append(_leaf_figures(name, None, array))
        if name.startswith("blocks."):
            figures += [_leaf_figures(name, layer, part) for layer, part in enumerate(array)]
    return figures


def _leaf_figures(name: str, layer: int | None, array: np.ndarray) -> LeafFigures:
    counts = np.bincount(array.ravel().astype(np.int64) + 128, minlength=256)
    values, shares = np.arange(-128, 128), counts / array.size
    mean = float(shares @ values)
    held = shares[shares > 0]
    return LeafFigures(
        name=name,
        layer=layer,
        shape=array.shape,
        mean=mean,
        std=float(np.sqrt(shares @ (values - mean) ** 2)),
        saturated=float(counts[[128 - MAX_INT8, 128 + MAX_INT8]].sum() / array.size),
        entropy=float(-(held * np.log2(held)).sum()) + 0.0,
    )


def inspect_activations(
    params: Params,
    config: Config,
    rows: np.ndarray,
    progress: Callable[[int], object] = lambda tokens: None,
) -> list[ActivationFigures]:
    """Returns the figures of every kind of activation in every layer, computed in MLX on its default device.

    Args:
        params: leaf name -> int8 array.
        config: shapes.
        rows: (B, T) uint8, each read from a zero state.
        progress: called with the number of tokens just done.

    Returns:
        In the order of computation; layer L is the norm and the head after the last layer.

    Raises:
        InputError: a token is outside the vocabulary.
    """
    check_vocabulary(rows.ravel(), config.vocab_size)
    step, names = _counting_step(config)
    weights = resident_weights(params)
    states = mx.zeros((len(rows), config.n_layer, config.n_embd), dtype=mx.int8)
    totals: Any = 0
    for tokens in rows.T:
        counts, states = step(weights, states, mx.array(tokens))
        mx.eval(counts, states)
        totals = totals + np.array(counts, np.int64).sum(axis=0)
        progress(len(tokens))
    return [
        ActivationFigures(
            name=name,
            layer=layer,
            low=int(low) / (rows.size * width),
            high=int(high) / (rows.size * width),
            mean_abs=int(total) / (rows.size * width),
            zero_divisors=int(zeros) / rows.size if name in _NORMED else None,
        )
        for (name, layer, width), (low, high, total, zeros) in zip(names, totals, strict=True)
    ]


def _counting_step(config: Config) -> tuple[Callable[..., tuple[mx.array, mx.array]], list[tuple[str, int, int]]]:
    """Returns a function that reads one token of each row, and the activations that it counts.

    The function takes parameters, states (B, L, D) and tokens (B,); it returns counts (B, activations, 4) int32 and the
    new states. The list has the name, layer and width of each activation. It is filled when MLX traces the function, at
    the first call.
    """
    names: list[tuple[str, int, int]] = []

    def one_row(params: Params, state: mx.array, token: mx.array) -> tuple[mx.array, mx.array]:
        names.clear()
        counts: list[mx.array] = []

        def tap(layer: int, /, **activations: mx.array) -> None:
            for name, value in activations.items():
                if name not in KINDS:
                    continue
                names.append((name, layer, value.shape[-1]))
                counts.append(_counts(value, 0 if name == "f" else -MAX_INT8))

        _, state = forward(params, UNPERTURBED, state, token, tap)
        return mx.stack(counts), state

    return mx.compile(mx.vmap(one_row, in_axes=(None, 0, 0))), names


def _counts(value: mx.array, lowest: int) -> mx.array:
    """Returns (4,) int32 of (d,) int32: entries at the lowest and highest value, sum of magnitudes, zero divisor."""
    ends = [mx.sum(value == end) for end in (lowest, lowest + 2 * MAX_INT8)]
    return mx.stack([*ends, mx.sum(mx.abs(value)), mx.sum(norm_divisor(value) == 0)]).astype(mx.int32)
