"""The command: `python -m data_prep`, and the same thing as `nanoegg prepare`.

`prepare` reads from top to bottom as what happens: look at what is there, write a new set aside,
look at it, move it into place. Everything a user can put right ends in one line and exit status 2.
"""

import argparse
import platform
import re
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import PrepareError, cache
from data_prep.cache import SPLITS, CacheWriter
from data_prep.formats import KNOWN
from data_prep.sources import (
    FRACTION,
    Fractions,
    Source,
    files_source,
    hub_source,
    split_files_source,
    stdlib_source,
)

MINIPILE = "JeanKaddour/minipile"
PACKAGES = ("nanoegg-mlx", "numpy", "pyarrow", "datasets")
DESCRIPTION = """\
Turn text into token caches: NAME_train.npy, NAME_valid.npy and NAME_test.npy, uint8 arrays of
every document's UTF-8 bytes after a 0 byte, and NAME_manifest.json, which says what they hold.
"""
EXAMPLES = """\
examples (%(prog)s ...):
  --source python-stdlib                          text that is already there, no network
  --source minipile                               the data set that nano-egg learns from
  --source hub:OWNER/NAME --column content        another data set of the hub
  --source notes/ --valid-fraction 0.1            a folder of files, split by a hash of their paths
  --train a.jsonl.gz --valid b.txt --test c.txt   files for each split
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the options on a parser, which may be a subparser of another command."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    where = parser.add_argument_group("where text comes from")
    where.add_argument(
        "--source",
        nargs="+",
        metavar="SOURCE",
        help="python-stdlib (the *.py files of this Python's library, the default), minipile, "
        f"hub:OWNER/NAME, or paths of files and folders ({KNOWN}); a text file is one document, "
        "elsewhere a row is",
    )
    where.add_argument(
        "--column",
        metavar="NAME",
        help="the column or JSON key that holds the text (default: text)",
    )
    where.add_argument("--config", metavar="NAME", help="which configuration of a hub data set (default: its own)")
    where.add_argument("--revision", metavar="REF", help="which branch, tag or commit of a hub data set")
    splits = parser.add_argument_group("which documents go where")
    for split in SPLITS:
        splits.add_argument(
            f"--{split}",
            nargs="+",
            metavar="INPUT",
            help=f"the {split} documents: paths, in place of --source; with a hub data set, its own name of the split",
        )
    for split in SPLITS[1:]:
        splits.add_argument(
            f"--{split}-fraction",
            type=float,
            metavar="PART",
            help=f"the part of the documents that goes to {split}, by a hash of file path and "
            f"row; 0 goes without (default: {FRACTION}, or a hub data set's own split)",
        )
    output = parser.add_argument_group("where caches go")
    output.add_argument("--out", type=Path, default=Path("data"), metavar="FOLDER", help="(default: data)")
    output.add_argument("--name", help="the caches' name (default: from the source)")
    output.add_argument("--force", action="store_true", help="replace caches of that name, whatever they hold")
    output.add_argument(
        "--check",
        action="store_true",
        help="prepare nothing: read the caches of that name back and compare their SHA-256",
    )
    output.add_argument("--quiet", action="store_true", help="no progress bar, no table")


def main(argv: list[str] | None = None, prog: str = "python -m data_prep") -> int:
    """Parse arguments (sys.argv by default) and run; returns the exit status as `run` does."""
    parser = argparse.ArgumentParser(prog=prog)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Do what the options of `add_arguments` ask for.

    Returns the exit status: 0, 2 with one line on stderr, or 130 when interrupted.
    """
    try:
        source = choose_source(args)
        name = args.name or source.name
        if not re.fullmatch(r"[^/\\\0.][^/\\\0]*", name):
            raise PrepareError(f"{name!r} cannot be part of a file's name: choose another --name")
        if args.check:
            manifest, outcome = cache.check(args.out, name), "checked, as the manifest has it"
        else:
            manifest, outcome = prepare(source, args.out, name, args.force, args.quiet)
    except PrepareError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no cache was made, run it again when you like", file=sys.stderr)
        return 130
    if not args.quiet:
        print(f"{name}: {outcome}")
        print(table(manifest, args.out))
        for remark in source.remarks + remarks(manifest):
            print(remark)
    return 0


def choose_source(args: argparse.Namespace) -> Source:
    """The source that the options name. Raises PrepareError when they contradict each other."""
    chosen = args.source or ([] if args.train else ["python-stdlib"])
    named = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    asked = {split: getattr(args, f"{split}_fraction") for split in SPLITS[1:]}
    asked = {split: fraction for split, fraction in asked.items() if fraction is not None}
    if not all(0 <= fraction < 1 for fraction in asked.values()) or sum(asked.values()) >= 1:
        raise PrepareError("--valid-fraction and --test-fraction are parts of 1: keep the sum below 1")
    if both := sorted(named.keys() & asked.keys()):
        raise PrepareError(f"--{both[0]} and --{both[0]}-fraction exclude each other: give one")

    repository = MINIPILE if chosen == ["minipile"] else ""
    if len(chosen) == 1 and chosen[0].startswith("hub:"):
        repository = chosen[0].removeprefix("hub:")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise PrepareError(f"{chosen[0]} names no data set: write hub:OWNER/NAME")
    column = args.column or "text"
    if repository:
        if several := [split for split, names in named.items() if len(names) > 1]:
            raise PrepareError(f"--{several[0]} takes one split of a hub data set: name one")
        return hub_source(
            repository,
            column,
            args.config,
            args.revision,
            {split: names[0] for split, names in named.items()},
            asked,
            progress=_progress(args.quiet),
        )
    if args.config or args.revision:
        raise PrepareError("--config and --revision are for hub data sets: leave them out")
    if named:
        if chosen or "train" not in named or asked:
            raise PrepareError(
                "--train, --valid and --test with paths say where everything goes: give --train, "
                "and neither --source nor fractions"
            )
        paths = {split: [Path(path) for path in named[split]] for split in named}
        return split_files_source(paths, column)
    fractions = Fractions(asked.get("valid", FRACTION), asked.get("test", FRACTION))
    if chosen == ["python-stdlib"]:
        if args.column:
            raise PrepareError("python-stdlib has no columns: leave --column out")
        return stdlib_source(fractions)
    for path in chosen:
        if not Path(path).exists():
            raise PrepareError(
                f"there is nothing at {path!r}: --source takes python-stdlib, minipile, "
                "hub:OWNER/NAME or paths that exist"
            )
    return files_source([Path(path) for path in chosen], column, fractions)


def prepare(
    source: Source, folder: Path, name: str, force: bool = False, quiet: bool = True
) -> tuple[dict[str, Any], str]:
    """Make the caches of a source, unless they are there.

    Returns their manifest and what was done, in words. Raises PrepareError, in which case nothing
    was written or replaced.
    """
    cache.recover(folder, name)
    if not force and (present := cache.existing(folder, name, source.request)):
        return present, "already prepared"

    def waiting() -> None:
        if not quiet:
            print(f"another process is preparing {name}: waiting for it", file=sys.stderr)

    with cache.staging(folder, name, waiting) as stage:
        # It may have been made while this process waited.
        if not force and (present := cache.existing(folder, name, source.request)):
            return present, "already prepared"
        entries = write_splits(source, stage, name, quiet)
        manifest = {
            "format_version": cache.FORMAT_VERSION,
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": source.request,
            "details": source.details,
            "splits": entries,
            "versions": versions(),
        }
        return cache.publish(stage, folder, name, manifest, force), f"prepared in {folder}"


def write_splits(source: Source, stage: Path, name: str, quiet: bool) -> dict[str, Any]:
    """Write every split's .npy into `stage`; returns the manifest's entries by split.

    Raises PrepareError when a split comes out empty.
    """
    writers = {split: CacheWriter(cache.cache_path(stage, name, split)) for split in source.splits}
    bar = tqdm(unit="B", unit_scale=True, desc=name, disable=not _progress(quiet))
    try:
        # One thread encodes while another hashes and writes; two pieces wait at most, for memory.
        with bar, closing(source.read(source)) as pieces, ThreadPoolExecutor(1) as writing:
            waiting: deque[Future[None]] = deque()
            for split, piece in pieces:
                waiting.append(writing.submit(writers[split].write, piece))
                if len(waiting) > 2:
                    waiting.popleft().result()
                bar.total = source.size
                bar.update(len(piece.tokens))
            for write in waiting:
                write.result()
        for split, writer in writers.items():
            _refuse_empty(split, writer, writers["train"].documents)
        return {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()


def table(manifest: dict[str, Any], folder: Path) -> str:
    """Split, documents, bytes and file of every cache, in aligned columns."""
    rows = [("split", "documents", "bytes", "file")]
    for split, entry in manifest["splits"].items():
        counts = f"{entry['documents']:,}", f"{entry['bytes']:,}"
        rows.append((split, *counts, str(folder / entry["file"])))
    first, second, third = (max(len(row[i]) for row in rows) for i in range(3))
    return "\n".join(f"{a:<{first}}  {b:>{second}}  {c:>{third}}  {d}" for a, b, c, d in rows)


def remarks(manifest: dict[str, Any]) -> list[str]:
    """What a user should know about the documents, a sentence each."""
    entries = manifest["splits"].values()
    sentences = []
    if nul := sum(entry["documents_with_nul"] for entry in entries):
        sentences.append(
            f"Documents that hold a 0 byte of their own: {nul:,}, kept as they are; a model takes "
            "it for the start of a document."
        )
    if null := sum(entry["null_documents"] for entry in entries):
        sentences.append(f"Rows without a text (null), left out: {null:,}.")
    return sentences


def versions() -> dict[str, str]:
    """Python's version and those of the packages that had a part in it, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _refuse_empty(split: str, writer: CacheWriter, train_documents: int) -> None:
    if writer.bytes > writer.documents:
        return
    what = "holds no text" if writer.documents else "got no document"
    if split == "train":
        raise PrepareError(f"the train split {what}: give it more text, or smaller fractions")
    raise PrepareError(
        f"the {split} split {what} (train got {train_documents}): raise --{split}-fraction, name "
        f"its text with --{split}, or go without it with --{split}-fraction 0"
    )


def _progress(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


if __name__ == "__main__":
    sys.exit(main())
