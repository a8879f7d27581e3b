"""`nanoegg compress`: files compressed with a checkpoint's model."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm

from nanoegg_mlx.commands.options import Help, add_engine_options
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.compress import Progress
from nanoegg_mlx.measure.compressed_files import STREAM, SUFFIX, Done, compress_file, text_size
from nanoegg_mlx.store import checkpoint

HELP = "compress files with a checkpoint's model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.formatter_class = Help
    parser.description = (
        "Compresses each FILE to FILE.egg. The same checkpoint decompresses it, on every machine. FILE - is standard "
        "input, and is written to standard output."
    )
    parser.add_argument("checkpoint", help="a run's folder (its newest checkpoint) or one checkpoint's")
    parser.add_argument("--verify", action="store_true", help="decompress and compare before the file gets its name")
    parser.add_argument(
        "--lanes", type=int, default=0, metavar="N", help="of every block of 4 MiB (default: one for each 16 KiB)"
    )
    add_file_options(parser)


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `decompress` has too."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="- for standard input")
    parser.add_argument("-o", "--output", metavar="FILE", help="the output, for one input (-: standard output)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-k", "--keep", action="store_true", help="keep the input (the default)")
    group.add_argument("--rm", action="store_true", help="delete the input after success")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the output")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> int:
    """Compresses the files; prints a line for each."""
    opened = checkpoint.load(options.checkpoint)
    if opened.epoch == 0:
        raise InputError(f"{opened.path} is of epoch 0, which is untrained; the checkpoint must be a trained one.")
    config = opened.config.replace(engine=options.engine, threads=options.threads)

    def compress(source: str, target: str, progress: Progress) -> Done:
        return compress_file(
            source, target, opened.params, config, lanes=options.lanes, verify=options.verify, remove=options.rm,
            force=options.force, progress=progress,
        )  # fmt: skip

    targets = output_names(options, lambda name: name + SUFFIX)
    twice = options.verify or options.rm

    def total(name: str) -> int | None:
        return (text_size(name, compressed=False) or 0) * (1 + twice) or None

    work(options.files, targets, compress, total, _sizes)
    return 0


def output_names(options: argparse.Namespace, rename: Callable[[str], str]) -> list[str]:
    """The output of each input.

    Raises:
        InputError: -o with several inputs, an output of two inputs, or an input to delete that has none.
    """
    if options.output is not None and len(options.files) > 1:
        raise InputError(f"-o is given for {len(options.files)} files; it must be used with one file.")
    targets = [options.output or (STREAM if name == STREAM else rename(name)) for name in options.files]
    for target in targets:
        if targets.count(target) > 1:
            raise InputError(f"{target} would be written {targets.count(target)} times; each output must be different.")
    if options.rm and STREAM in (*options.files, *targets):
        raise InputError("--rm is given with a standard stream; the input and the output must be files.")
    return targets


def work(
    files: Sequence[str],
    targets: Sequence[str],
    code: Callable[[str, str, Progress], Done],
    total: Callable[[str], int | None],
    sizes: Callable[[Done], str],
) -> None:
    """Codes file after file, with a bar of `total` bytes of text, and prints a line with the `sizes` of each."""
    # An exception, so that no temporary file stays, as after Ctrl-C.
    handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        for source, target in zip(files, targets, strict=True):
            with tqdm(total=total(source), unit="B", unit_scale=True, leave=False, disable=None, desc=source) as bar:
                done = code(source, target, bar.update)
            print(_line(done, sizes(done)), file=sys.stderr if target == STREAM else sys.stdout)
    finally:
        signal.signal(signal.SIGTERM, handler)


def _line(done: Done, sizes: str) -> str:
    name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in done.source)
    return f"{name}: {sizes}, {done.text / 1e6 / max(done.seconds, 1e-9):.1f} MB/s"


def _sizes(done: Done) -> str:
    share = ""
    if done.text:
        ratio = done.compressed / done.text
        share = f" ({ratio:.2%}".replace("%", " %") + f", {8 * ratio:.2f} bits per byte)"
    return f"{done.text:,} -> {done.compressed:,} bytes{share}"
