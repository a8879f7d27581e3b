"""What to look at when a run goes wrong: how full weights and activations have made their int8 range.

Nothing overflows here, it sticks: what is at -127 or 127 cannot be learnt or computed further, and a residual stream or
gate that stays there no longer works. Near zero it is no better: with a mean below 1 a norm's divisor is 0, and its
output is a constant. Activations come from the model's own definition (`model.forward`, by its `tap`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import MAX_INT8
from nanoegg_mlx.core.model import forward, norm_divisor
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.core.score import resident_weights
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.evaluate import validation_rows
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.tokens import check_vocabulary, read_text

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
_ROWS, _TOKENS = 64, 64


@dataclass(frozen=True)
class LeafFigures:
    """A parameter leaf, or one layer of it."""

    name: str
    layer: int | None
    """None for the whole leaf."""
    shape: tuple[int, ...]
    mean: float
    std: float
    saturated: float
    """Share of entries at -127 or 127."""
    entropy: float
    """Of the distribution of the entries' values, in bits; 8 would fill the range evenly."""


@dataclass(frozen=True)
class ActivationFigures:
    """One kind of activation in one layer, over all tokens."""

    name: str
    layer: int
    low: float
    """Share at the lower end: -127, of a gate 0."""
    high: float
    """Share at the upper end: 127, of a gate 254."""
    mean_abs: float
    zero_divisors: float | None
    """Share of tokens for which the norm of this has the divisor 0; None where there is no norm of it."""


def inspect_params(params: Params) -> list[LeafFigures]:
    """Figures of every leaf, and of each layer of those that are stacked, after the leaf they belong to."""
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
    """Figures of every kind of activation in every layer, in MLX on its default device.

    Args:
        params: leaf name -> int8 array.
        config: shapes.
        rows: (B, T) uint8, each read from a zero state.
        progress: called with the number of tokens just done.

    Returns:
        In the order in which the model computes them; layer L stands for what follows the last layer.
    """
    check_vocabulary(rows.ravel(), config.vocab_size)
    names: list[tuple[str, int, int]] = []

    def one_row(params: Params, state: mx.array, token: mx.array) -> tuple[mx.array, mx.array]:
        names.clear()
        counts: list[mx.array] = []

        def tap(layer: int, /, **activations: mx.array) -> None:
            for name, value in activations.items():
                names.append((name, layer, value.shape[-1]))
                counts.append(_counts(value, 0 if name == "f" else -MAX_INT8))

        _, state = forward(params, {}, config.shift, state, token, tap)
        return mx.stack(counts), state

    step = mx.compile(mx.vmap(one_row, in_axes=(None, 0, 0)))
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


def _counts(value: mx.array, lowest: int) -> mx.array:
    """Of (d,) int32: entries at the lowest and the highest value, sum of magnitudes, 1 for a divisor 0; (4,) int32."""
    ends = [mx.sum(value == end) for end in (lowest, lowest + 2 * MAX_INT8)]
    return mx.stack([*ends, mx.sum(mx.abs(value)), mx.sum(norm_divisor(value) == 0)]).astype(mx.int32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg inspect`."""
    parser.description = (
        "Shows how full the int8 range is: of each parameter leaf mean, spread, saturation and entropy; and, on some "
        "text, which share of each layer's activations sits at the ends of its range."
    )
    parser.add_argument("checkpoint", help="a run's folder (its newest checkpoint) or one checkpoint's")
    parser.add_argument(
        "--text", metavar="FILE", help="token cache or text file (default: the run's validation cache, if it is there)"
    )
    parser.add_argument("--rows", type=int, metavar="B", help="rows that the text is cut into (default: 64 at most)")
    parser.add_argument(
        "--tokens", type=int, metavar="T", help="read of each row, from a zero state (default: 64 at most)"
    )
    parser.add_argument("--layers", action="store_true", help="each layer of the parameters too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Measures and prints; returns the exit code."""
    for name in ("rows", "tokens"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)} is not allowed; it has to be at least 1.")
    opened = checkpoint.load(options.checkpoint)
    leaves = inspect_params(opened.params)
    activations: list[ActivationFigures] = []
    text = options.text or opened.config.valid
    read = ""
    if options.text or Path(text).exists():
        tokens = read_text(text)
        rows = options.rows or max(min(_ROWS, len(tokens) // _TOKENS), 1)
        try:
            cut = validation_rows(tokens, rows)
        except InputError as error:
            raise InputError(
                f"{text} has {len(tokens)} tokens; --rows allows 1 to {len(tokens) // 2} of them."
            ) from error
        cut = cut[:, : options.tokens or _TOKENS]
        with tqdm(total=cut.size, unit="B", disable=options.json or None, leave=False) as bar:
            activations = inspect_activations(opened.params, opened.config, cut, bar.update)
        read = f"{len(cut)} rows of {cut.shape[1]} tokens of {text}"
    if options.json:
        about = {"checkpoint": str(opened.path), "epoch": opened.epoch, "text": str(text) if activations else None}
        about |= {"parameters": [asdict(leaf) for leaf in leaves], "activations": [asdict(a) for a in activations]}
        print(json.dumps(about))
        return 0
    print(f"{opened.path} (epoch {opened.epoch})\n")
    print(parameter_table([leaf for leaf in leaves if leaf.layer is None or options.layers]))
    if activations:
        print(f"\nActivations on {read}\n")
        print(activation_table(activations))
    else:
        print(f"\nNo activations: {text} is not there; --text FILE names another text.")
    return 0


def parameter_table(leaves: list[LeafFigures]) -> str:
    """A line for each leaf or layer of one."""
    lines = [f"{'parameters':<24}{'shape':>16}{'mean':>9}{'std':>8}{'at ±127':>10}{'bits':>7}"]
    for leaf in leaves:
        name = leaf.name if leaf.layer is None else f"  layer {leaf.layer}"
        shape = " x ".join(map(str, leaf.shape))
        lines.append(
            f"{name:<24}{shape:>16}{leaf.mean:>9.3f}{leaf.std:>8.2f}{_percent(leaf.saturated):>10}{leaf.entropy:>7.3f}"
        )
    return "\n".join(lines)


def activation_table(activations: list[ActivationFigures]) -> str:
    """A line for each kind and layer."""
    lines = [f"{'activation':<45}{'layer':>6}{'lowest':>9}{'highest':>9}{'mean |.|':>10}{'divisor 0':>11}"]
    for kind, about in KINDS.items():
        of_kind = [a for a in activations if a.name == kind]
        last = max(a.layer for a in activations)
        for number, a in enumerate(of_kind):
            title = f"{kind:<8}{about}" if number == 0 else ""
            layer = "end" if a.layer == last else str(a.layer)
            zeros = "" if a.zero_divisors is None else _percent(a.zero_divisors)
            line = f"{title:<45}{layer:>6}{_percent(a.low):>9}{_percent(a.high):>9}{a.mean_abs:>10.2f}{zeros:>11}"
            lines.append(line.rstrip())
    return "\n".join(lines)


def _percent(share: float) -> str:
    """Two decimals, but nothing that is there shown as nothing."""
    return f"{100 * share:.2f}%" if share == 0 or share >= 5e-5 else "<0.01%"
