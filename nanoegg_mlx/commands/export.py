"""`nanoegg export`: a checkpoint's model as a file of C, as safetensors or npz, or as a folder for the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from nanoegg_mlx.commands.options import Help
from nanoegg_mlx.config import Config
from nanoegg_mlx.measure.export import Targets, export
from nanoegg_mlx.measure.export_c import memory
from nanoegg_mlx.measure.export_hub import UNKNOWN_LICENCE
from nanoegg_mlx.store import checkpoint

HELP = "a checkpoint as one file of C, or for the Hugging Face hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.formatter_class = Help
    parser.description = (
        "Writes a checkpoint's model for use elsewhere. One or more targets may be given; each must be new. The C file "
        "needs no library and computes the same bits; with -DEGG_MAIN it is a program that samples, measures, "
        "compresses and decompresses. The other targets have a model card."
    )
    parser.add_argument("checkpoint", help="a run's folder (its newest checkpoint) or one checkpoint's")
    parser.add_argument("--c", type=Path, metavar="FILE", help="one file of C99")
    parser.add_argument("--safetensors", type=Path, metavar="FILE", help="13 int8 arrays, and a card as FILE.md")
    parser.add_argument("--npz", type=Path, metavar="FILE", help="the same arrays for NumPy, and a card as FILE.md")
    parser.add_argument(
        "--hf-folder", type=Path, metavar="DIR", help="README.md, config.json and model.safetensors, ready to upload"
    )
    parser.add_argument(
        "--license",
        default=UNKNOWN_LICENCE,
        metavar="ID",
        help="the weights' licence in the model card: mit, apache-2.0, cc-by-4.0 ... (default: unknown)",
    )


def run(options: argparse.Namespace) -> int:
    """Writes the targets and prints their sizes."""
    opened = checkpoint.load(options.checkpoint)
    targets = Targets(options.c, options.safetensors, options.npz, options.hf_folder)
    files = export(opened, targets, options.license)
    print(f"{opened.path} (epoch {opened.epoch})")
    for path, size in files.items():
        print(f"  {path!s:<32} {size:>12,} bytes")
        if path == options.c:
            print(memory_table(opened.config))
    return 0


def memory_table(config: Config) -> str:
    """What the C file needs on a microcontroller."""
    need = memory(config)
    lines = [
        ("flash", need.flash, f"{need.weights:,} of weights, code below {need.code:,} (Cortex-M, -Os)"),
        ("RAM", need.ram, f"{need.state:,} of state, {need.logits:,} of logits, stack below {need.stack:,}"),
    ]
    return "\n".join(f"    {name:<30} {size:>12,} bytes: {parts}" for name, size, parts in lines)
