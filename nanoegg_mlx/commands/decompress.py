"""`nanoegg decompress`: the files that `nanoegg compress` was given."""

from __future__ import annotations

import argparse
import os
from functools import partial

from nanoegg_mlx.commands.compress import add_file_options, output_names, work
from nanoegg_mlx.commands.options import Help
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.compress import Progress
from nanoegg_mlx.measure.compressed_files import SUFFIX, Done, decompress_file, text_size
from nanoegg_mlx.store import checkpoint

HELP = "decompress files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.formatter_class = Help
    parser.description = (
        "Decompresses each FILE.egg to FILE. Nothing is written unless all of the file is right: its model, and every "
        "byte. FILE - is standard input, and is written to standard output."
    )
    parser.add_argument(
        "--model", required=True, metavar="CHECKPOINT", help="that compressed it: a run's folder or a checkpoint's"
    )
    add_file_options(parser)


def run(options: argparse.Namespace) -> int:
    """Decompresses the files; prints a line for each."""
    opened = checkpoint.load(options.model)
    config = opened.config.replace(engine=options.engine, threads=options.threads)

    def decompress(source: str, target: str, progress: Progress) -> Done:
        return decompress_file(
            source, target, opened.params, config, remove=options.rm, force=options.force, progress=progress
        )

    total = partial(text_size, compressed=True)
    work(options.files, output_names(options, _without_suffix), decompress, total, _sizes)
    return 0


def _sizes(done: Done) -> str:
    return f"{done.compressed:,} -> {done.text:,} bytes"


def _without_suffix(name: str) -> str:
    if os.path.basename(name) == SUFFIX or not name.endswith(SUFFIX):
        raise InputError(f"{name} does not end with {SUFFIX}; it must, or -o must name the output.")
    return name[: -len(SUFFIX)]
