"""Makes the caches of a source: write a new set into a staging folder, check it, move it into place."""

import platform
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import cache
from data_prep.cache import CacheWriter
from data_prep.isolation import isolated
from data_prep.sources import Source
from nanoegg_mlx.errors import InputError

PACKAGES = ("nanoegg-mlx", "numpy", "pyarrow", "datasets")


def prepare(
    source: Source, folder: Path, name: str, force: bool = False, quiet: bool = True
) -> tuple[dict[str, Any], str]:
    """Makes the caches of a source, unless they exist.

    Returns their manifest and the outcome in words.
    Raises InputError, in which case nothing was written or replaced.
    """
    cache.recover(folder, name)
    if not force and (present := cache.existing(folder, name, source.request)):
        return present, "already prepared"

    def waiting() -> None:
        if not quiet:
            print(f"Another process is preparing {name}; waiting for it.", file=sys.stderr)

    with cache.staging(folder, name, waiting) as stage:
        # Another process may have made the set while this one waited.
        if not force and (present := cache.existing(folder, name, source.request)):
            return present, "already prepared"
        entries = _write(source, stage, name, quiet)
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


def _write(source: Source, stage: Path, name: str, quiet: bool) -> dict[str, Any]:
    """Runs write_splits, in a child process if the source's files are not to be trusted."""
    if not source.isolated:
        return write_splits(source, stage, name, quiet)

    if source.fetch:
        # The library that builds the data set from downloads runs Arrow's code too; the second call finds the result.
        isolated(partial(_fetch, source))
        source.fetched = source.fetch()

    def work(announce: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        source.reading = announce
        return write_splits(source, stage, name, quiet), source.details, source.remarks

    entries, source.details, source.remarks = isolated(work)
    return entries


def _fetch(source: Source, announce: Callable[[str], None]) -> None:
    announce(f"The data set {source.name}")
    assert source.fetch
    source.fetch()


def write_splits(source: Source, stage: Path, name: str, quiet: bool) -> dict[str, Any]:
    """Writes each split's .npy file into `stage`. Returns the manifest's entries by split.

    Raises InputError if a split is empty.
    """
    writers = {split: CacheWriter(cache.cache_path(stage, name, split)) for split in source.splits}
    # disable=None: no bar where stderr is not a terminal.
    bar = tqdm(unit="B", unit_scale=True, desc=name, disable=quiet or None)
    try:
        # One thread encodes while another hashes and writes. The limit on waiting pieces bounds memory.
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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that made the caches, if they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _refuse_empty(split: str, writer: CacheWriter, train_documents: int) -> None:
    # Each document begins with a 0 byte, which is not text.
    if writer.bytes > writer.documents:
        return
    found = "has no text" if writer.documents else "has no documents"
    if split == "train":
        raise InputError(f"The train split {found}; it must have some (give more text, or smaller fractions).")
    raise InputError(
        f"The {split} split {found} (documents in train: {train_documents}); it must have some (raise "
        f"--{split}-fraction, name its text with --{split}, or leave the split out with --{split}-fraction 0)."
    )
