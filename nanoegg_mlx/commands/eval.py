"""`nanoegg eval`: bits per byte of a checkpoint on a token cache or a text file."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from tqdm import tqdm

from nanoegg_mlx.commands.options import Help
from nanoegg_mlx.measure.baselines import BASELINES, ORDERS
from nanoegg_mlx.measure.evaluate import Evaluation, evaluate
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.tokens import read_text

HELP = "bits per byte of a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg eval`."""
    parser.formatter_class = Help
    parser.description = (
        "Measures a checkpoint on a token cache (.npy) or a text file: the reference's integer figure and the exact, "
        "normalised one with its standard error over documents. A text file is one document: a 0 byte and its bytes."
    )
    parser.add_argument("checkpoint", help="a run's folder (its newest checkpoint) or one checkpoint's")
    parser.add_argument("text", nargs="?", help="token cache or text file (default: the run's validation cache)")
    parser.add_argument(
        "--rows",
        type=int,
        metavar="B",
        help="rows that the text is cut into, read in parallel from zero states (default: the run's "
        "validation_batch_size, or 1 if the text is too short for that)",
    )
    parser.add_argument(
        "--by-position", action="store_true", help="bits per byte of a document's byte 1, 2, 3-4, 5-8 ..."
    )
    parser.add_argument(
        "--baselines", action="store_true", help="unigram, bigram, trigram, gzip and xz of the same bytes"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Measures and prints; returns 0."""
    opened = checkpoint.load(options.checkpoint)
    text = Path(options.text or opened.config.valid)
    tokens = read_text(text)
    rows = options.rows
    if rows is None:
        rows = opened.config.validation_batch_size
        if len(tokens) < 2 * rows:
            rows = 1
    config = opened.config.replace(validation_batch_size=rows)
    with tqdm(total=len(tokens), unit="B", unit_scale=True, disable=options.json or None) as bar:
        evaluation = evaluate(opened.params, tokens, config, bar.update)
    figures = {name: figure(tokens) for name, figure in BASELINES.items()} if options.baselines else {}
    if options.json:
        about = {"checkpoint": str(opened.path), "epoch": opened.epoch, "text": str(text)}
        print(json.dumps({**about, **dataclasses.asdict(evaluation), **figures}))
    else:
        print(_table(opened, text, evaluation, figures, options.by_position))
    return 0


def _table(
    opened: checkpoint.Checkpoint, text: Path, evaluation: Evaluation, figures: dict[str, float], by_position: bool
) -> str:
    error, certainty = "", "no standard error: it needs two documents or more"
    if evaluation.standard_error is not None:
        error = f"{evaluation.standard_error:.4f}"
        certainty = f"standard error over {evaluation.documents:,} documents"
    lines = [
        f"{opened.path} (epoch {opened.epoch}) on {text}: {evaluation.tokens:,} tokens in "
        f"{evaluation.rows:,} row{'s' * (evaluation.rows > 1)}, "
        f"{evaluation.seconds:.1f} s",
        f"  {'bits per byte':<28} {evaluation.bits_per_byte:8.4f}            the reference's integer figure",
        f"  {'exact bits per byte':<28} {evaluation.exact_bits_per_byte:8.4f} {'±' if error else ' '} {error:<8} "
        f"normalised code length; {certainty}",
    ]
    if by_position:
        lines.append(f"  {'byte of a document':<28} {'exact':>8} {'bytes':>14}")
        for at in evaluation.by_position:
            if at.first is None:
                name = "cut document (start unknown)"
            else:
                name = f"{at.first:,}" if at.first == at.last else f"{at.first:,}-{at.last:,}"
            lines.append(f"  {name:<28} {at.bits_per_byte:8.4f} {at.bytes:>14,}")
    for name, value in figures.items():
        how = "of the same bytes" + (", fitted to them (empirical entropy)" if name in ORDERS else "")
        lines.append(f"  {name:<28} {value:8.4f}            {how}")
    return "\n".join(lines)
