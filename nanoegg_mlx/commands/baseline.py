"""`nanoegg baseline`: n-grams, compressors and float models on the same bytes."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from functools import partial

import numpy as np

from nanoegg_mlx.commands.options import Help, add_config_options, given_config
from nanoegg_mlx.config import Config
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.baselines import BASELINES, ORDERS, NGram
from nanoegg_mlx.store.tokens import load_tokens, read_text
from nanoegg_mlx.training import backprop
from nanoegg_mlx.training.float_models import MODELS

HELP = "bits per byte of a text by other models and compressors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `baseline unigram`, `bigram`, `trigram`, `gzip`, `xz`, `transformer` and `mingru`."""
    parser.description = "Measures a text by other models and by compressors, in the same bits per byte."
    kinds = parser.add_subparsers(dest="kind", metavar="kind", required=True)
    for name in BASELINES:
        _add_text_arguments(name, kinds.add_parser(name, help=f"bits per byte of a text by {name}"))
    for name in MODELS:
        about = f"train a float {name} on a run's batches, by backpropagation"
        _add_backprop_arguments(name, kinds.add_parser(name, help=about, formatter_class=Help))


def _add_text_arguments(name: str, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", help="token cache (.npy) or text file")
    if name not in ORDERS:
        level = 9 if name == "gzip" else 6
        parser.description = f"Measures a text by {name} -{level}, which learns the text while it compresses it."
    else:
        parser.description = (
            f"Measures a text by {name}s. With --train, the {name}s are counted on another text and smoothed "
            "(interpolated Witten-Bell): compare this figure with a model's. Without --train, the figure is the "
            "empirical entropy, fitted to the bytes that it measures."
        )
        parser.add_argument("--train", metavar="CACHE", help="token cache to count on")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_backprop_arguments(name: str, parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"Trains a byte-level {name} in floats on the batches that a run with the same config reads, into a new folder "
        f"<name>-{name} under --checkpoints, with a metrics.jsonl like a run's. Every key of the config is an option; "
        "population and group_size set the number of lanes."
    )
    group = parser.add_argument_group("gradient descent")
    default = backprop.Descent()
    group.add_argument("--optimizer", default=default.optimizer, metavar="NAME", help="sgd or adam (default: sgd)")
    group.add_argument(
        "--learning-rate", type=float, default=default.learning_rate, metavar="X", help="(default: %(default)s)"
    )
    group.add_argument("--momentum", type=float, default=default.momentum, metavar="X", help="(default: %(default)s)")
    group.add_argument(
        "--micro-batch",
        type=int,
        default=default.micro_batch,
        metavar="N",
        help="windows in memory at a time; their gradients are summed (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Measures a text, or trains the transformer, and prints the figures. Returns 130 after Ctrl-C, else 0."""
    if options.kind in MODELS:
        return _train(options)
    _measure(options.kind, options.text, getattr(options, "train", None), options.json)
    return 0


def _train(options: argparse.Namespace) -> int:
    given = given_config(options)
    config = Config.from_toml(options.config, **given) if options.config else Config(**given)
    descent = backprop.Descent(options.optimizer, options.learning_rate, options.momentum, options.micro_batch)
    outcome = backprop.train(config, descent, partial(print, file=sys.stderr), options.kind)
    last = outcome.validation
    if options.json:
        print(json.dumps({"run": str(outcome.folder), "parameters": outcome.parameters, **(last or {})}))
    elif last:
        figure = f"{last['validation']:.4f} bits per byte of the validation set"
        print(f"{outcome.folder}: {figure} after {last['epoch']} epochs")
    return 130 if outcome.stopped == signal.SIGINT else 0


def _measure(name: str, text: str, train: str | None, as_json: bool) -> None:
    tokens = _not_empty(read_text(text), text)
    if train:
        counted = _not_empty(load_tokens(train), train)
        figure = NGram(counted, ORDERS[name]).bits_per_byte(tokens)
        method = f"counted on the {len(counted):,} bytes of {train}, Witten-Bell smoothing"
    else:
        figure = BASELINES[name](tokens)
        method = "empirical entropy, fitted to the same bytes" if name in ORDERS else "compressed size"
    if as_json:
        about = {"baseline": name, "text": text, "tokens": len(tokens), "train": train, "bits_per_byte": figure}
        print(json.dumps(about))
    else:
        print(f"{text}: {len(tokens):,} bytes\n  {name:<10} {figure:8.4f} bits per byte   {method}")


def _not_empty(tokens: np.ndarray, path: str) -> np.ndarray:
    if not len(tokens):
        raise InputError(f"The token cache {path} is empty; it must have at least one token.")
    return tokens
