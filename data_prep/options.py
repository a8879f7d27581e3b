"""The command's options, and the source that they name."""

import argparse
import re
import sys
from pathlib import Path

from data_prep import saved
from data_prep.cache import SPLITS
from data_prep.sources import (
    FRACTION,
    SINGLE_FRACTION,
    Fractions,
    Source,
    files_source,
    hub_source,
    saved_source,
    split_files_source,
    stdlib_source,
)
from data_prep.streams import KNOWN
from nanoegg_mlx.errors import InputError

MINIPILE = "JeanKaddour/minipile"
DESCRIPTION = """\
Converts text to token caches: NAME_train.npy, NAME_valid.npy and NAME_test.npy, uint8 arrays of
each document's UTF-8 bytes after a 0 byte, and NAME_manifest.json with their source and contents.
"""
EXAMPLES = """\
examples (%(prog)s ...):
  --source python-stdlib                          text of the Python installation, no network
  --source minipile                               the data set that nano-egg learns from
  --source hub:OWNER/NAME --column content        another data set of the hub
  --source notes/ --valid-fraction 0.1            a folder of files, split by a hash of their paths
  --source input.txt                              one text file, split by position
  --train a.jsonl.gz --valid b.txt --test c.txt   files for each split
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options on a parser, which may be a subparser of another command."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_source_arguments(parser)
    _add_split_arguments(parser)
    _add_output_arguments(parser)


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("source of the text")
    source.add_argument(
        "--source",
        nargs="+",
        metavar="SOURCE",
        help="python-stdlib (the *.py files of this Python's library, the default), minipile, hub:OWNER/NAME, or paths "
        f"of files, pipes and folders ({KNOWN}; also data sets that save_to_disk wrote); a text file is one document, "
        "in other files each row is one",
    )
    source.add_argument(
        "--column", metavar="NAME", help="the column or JSON key of the text; a.b for b inside of a (default: text)"
    )
    source.add_argument("--config", metavar="NAME", help="configuration of a hub data set (default: its own)")
    source.add_argument("--revision", metavar="REF", help="branch, tag or commit of a hub data set")


def _add_split_arguments(parser: argparse.ArgumentParser) -> None:
    splits = parser.add_argument_group("documents of each split")
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
            help=f"the part of the documents that goes to {split}, by a hash of file path and row; 0 leaves the split "
            f"out (default: {FRACTION}, or a data set's own split). A single text file is split by position (default: "
            f"{SINGLE_FRACTION if split == 'valid' else 0})",
        )


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, default=Path("data"), metavar="FOLDER", help="folder of the caches (default: data)"
    )
    output.add_argument("--name", help="name of the caches (default: from the source)")
    output.add_argument("--force", action="store_true", help="replace caches of that name, whatever their content")
    output.add_argument(
        "--check",
        action="store_true",
        help="prepare nothing: read the caches of that name and compare their SHA-256 with the manifest",
    )
    output.add_argument("--quiet", action="store_true", help="no progress bar, no table")


def choose_source(options: argparse.Namespace) -> Source:
    """Returns the source that the options name. Raises InputError if they contradict each other."""
    named = {split: getattr(options, split) for split in SPLITS if getattr(options, split)}
    fractions = _given_fractions(options)
    if both := sorted(named.keys() & fractions.keys()):
        raise InputError(f"--{both[0]} and --{both[0]}-fraction are both given; there must be only one of them.")
    chosen = options.source or ([] if options.train else ["python-stdlib"])
    if repository := _hub_repository(chosen):
        return _hub_source(options, repository, named, fractions)
    if options.config or options.revision:
        raise InputError("--config and --revision are given; they must be left out without a hub data set.")
    if len(chosen) == 1 and (found := saved.find_splits(Path(chosen[0]))):
        return saved_source(Path(chosen[0]), found, options.column or "text", _own_names(named), fractions)
    if named:
        if chosen or "train" not in named or fractions:
            raise InputError(
                "--train, --valid and --test with paths replace all other choices of text; --train must be given, and "
                "--source and fractions must be left out."
            )
        paths = {split: [Path(path) for path in named[split]] for split in named}
        return split_files_source(paths, options.column or "text")
    return _local_source(options, chosen, fractions)


def check_name(name: str) -> None:
    """Raises InputError unless the name can be the first part of a file name."""
    if not re.fullmatch(r"[^/\\\0.][^/\\\0]*", name):
        raise InputError(
            f"The name {name!r} is not allowed; --name must have no slash, no backslash and no dot at its start."
        )


def _given_fractions(options: argparse.Namespace) -> dict[str, float]:
    fractions = {split: getattr(options, f"{split}_fraction") for split in SPLITS[1:]}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction is not None}
    # NaN fails the first comparison.
    if not all(0 <= fraction < 1 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        raise InputError(
            "--valid-fraction and --test-fraction are out of range; each must be at least 0, and their sum below 1."
        )
    return fractions


def _hub_repository(chosen: list[str]) -> str | None:
    """OWNER/NAME of the hub data set that --source names, None for any other source."""
    if chosen == ["minipile"]:
        return MINIPILE
    if len(chosen) != 1 or not chosen[0].startswith("hub:"):
        return None
    repository = chosen[0].removeprefix("hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"The source {chosen[0]!r} is not a data set's name; it must be hub:OWNER/NAME.")
    return repository


def _hub_source(
    options: argparse.Namespace, repository: str, named: dict[str, list[str]], fractions: dict[str, float]
) -> Source:
    return hub_source(
        repository,
        options.column or "text",
        options.config,
        options.revision,
        _own_names(named),
        fractions,
        progress=not options.quiet and sys.stderr.isatty(),
    )


def _own_names(named: dict[str, list[str]]) -> dict[str, str]:
    """The names that a data set itself gives its splits, one for each of ours."""
    for split, names in named.items():
        if len(names) > 1:
            raise InputError(f"--{split} names {len(names)} splits of a hub data set; it must name one.")
    return {split: names[0] for split, names in named.items()}


def _local_source(options: argparse.Namespace, chosen: list[str], given: dict[str, float]) -> Source:
    fractions = Fractions(given.get("valid", FRACTION), given.get("test", FRACTION))
    if chosen == ["python-stdlib"]:
        if options.column:
            raise InputError("--column is given, but python-stdlib has no columns; it must be left out.")
        return stdlib_source(fractions)
    for path in chosen:
        if not Path(path).exists():
            raise InputError(
                f"The source {path!r} does not exist; it must be python-stdlib, minipile, hub:OWNER/NAME or paths "
                "that exist."
            )
    by_position = Fractions(given.get("valid", SINGLE_FRACTION), given.get("test", 0))
    return files_source([Path(path) for path in chosen], options.column or "text", fractions, by_position)
