"""`nanoegg info`: engine, instruction set, threads, MLX device and versions of this machine."""

from __future__ import annotations

import argparse
import json

from nanoegg_mlx.engines.setup import training_setup

HELP = "engine, instruction set, threads, MLX device and versions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg info`."""
    parser.description = "Prints the engine, device and versions that a training run on this machine uses."
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Prints; returns 0."""
    about = training_setup()
    if options.json:
        print(json.dumps(about))
    else:
        print("\n".join(f"{name:<18} {value}" for name, value in about.items()))
    return 0
