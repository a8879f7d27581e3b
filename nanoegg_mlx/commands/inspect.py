"""`nanoegg inspect`: saturation of the weights and activations of a checkpoint, as tables or JSON."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.evaluate import validation_rows
from nanoegg_mlx.measure.inspect import (
    KINDS,
    ActivationFigures,
    LeafFigures,
    inspect_activations,
    inspect_params,
)
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.tokens import read_text

HELP = "saturation of a checkpoint's weights and activations"

_ROWS, _TOKENS = 64, 64
"""Rows of the text, and tokens of each, unless options set them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Shows how full the int8 range is: mean, spread, saturation and entropy of each parameter leaf; and, on some "
        "text, the share of each layer's activations at the ends of their range."
    )
    parser.add_argument("checkpoint", help="a run's folder (its newest checkpoint) or one checkpoint's")
    parser.add_argument(
        "--text", metavar="FILE", help="token cache or text file (default: the run's validation cache, if it exists)"
    )
    parser.add_argument("--rows", type=int, metavar="B", help="rows that the text is cut into (default: 64 at most)")
    parser.add_argument(
        "--tokens", type=int, metavar="T", help="read of each row, from a zero state (default: 64 at most)"
    )
    parser.add_argument("--layers", action="store_true", help="each layer of the parameters too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Measures and prints the figures."""
    for name in ("rows", "tokens"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}; it must be at least 1.")
    opened = checkpoint.load(options.checkpoint)
    leaves = inspect_params(opened.params)
    activations: list[ActivationFigures] = []
    text, read = options.text or opened.config.valid, ""
    if options.text or Path(text).exists():
        rows = _rows(read_text(text), text, options.rows, options.tokens)
        with tqdm(total=rows.size, unit="B", disable=options.json or None, leave=False) as bar:
            activations = inspect_activations(opened.params, opened.config, rows, bar.update)
        read = f"{len(rows)} rows of {rows.shape[1]} tokens of {text}"
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
        print(f"\nNo activations: {text} does not exist; --text FILE names another text.")
    return 0


def _rows(tokens: np.ndarray, text: str, rows: int | None, width: int | None) -> np.ndarray:
    """Returns the starts of `rows` equal parts of a text, (rows, width) uint8."""
    if len(tokens) < 2:
        raise InputError(f"{text} has fewer than 2 tokens; it must have at least 2.")
    most = len(tokens) // 2
    if rows is None:
        rows = max(min(_ROWS, len(tokens) // _TOKENS), 1)
    elif rows > most:
        raise InputError(f"--rows is {rows}; it must be from 1 to {most} for the {len(tokens)} tokens of {text}.")
    return validation_rows(tokens, rows)[:, : width or _TOKENS]


def parameter_table(leaves: list[LeafFigures]) -> str:
    """Returns a table with a line for each leaf, or layer of a leaf."""
    lines = [f"{'parameters':<24}{'shape':>16}{'mean':>9}{'std':>8}{'at ±127':>10}{'bits':>7}"]
    for leaf in leaves:
        name = leaf.name if leaf.layer is None else f"  layer {leaf.layer}"
        shape = " x ".join(map(str, leaf.shape))
        lines.append(
            f"{name:<24}{shape:>16}{leaf.mean:>9.3f}{leaf.std:>8.2f}{_percent(leaf.saturated):>10}{leaf.entropy:>7.3f}"
        )
    return "\n".join(lines)


def activation_table(activations: list[ActivationFigures]) -> str:
    """Returns a table with a line for each kind of activation in each layer."""
    lines = [f"{'activation':<45}{'layer':>6}{'lowest':>9}{'highest':>9}{'mean |.|':>10}{'divisor 0':>11}"]
    last = max(a.layer for a in activations)
    for kind, about in KINDS.items():
        of_kind = [a for a in activations if a.name == kind]
        for number, a in enumerate(of_kind):
            title = f"{kind:<8}{about}" if number == 0 else ""
            layer = "end" if a.layer == last else str(a.layer)
            zeros = "" if a.zero_divisors is None else _percent(a.zero_divisors)
            line = f"{title:<45}{layer:>6}{_percent(a.low):>9}{_percent(a.high):>9}{a.mean_abs:>10.2f}{zeros:>11}"
            lines.append(line.rstrip())
    return "\n".join(lines)


def _percent(share: float) -> str:
    """Formats a share with two decimals; a small share is never shown as zero."""
    return f"{100 * share:.2f}%" if share == 0 or share >= 5e-5 else "<0.01%"
