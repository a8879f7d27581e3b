"""Where text comes from: a hub data set, local files, or the interpreter's own library sources.

A Source is what to read (its `request`, which a manifest keeps to tell one set of caches from
another) and a way to read it (`read()`, which yields the tokens of all splits piece by piece).

Notable: which split a document falls into depends on nothing but its file's path, relative to the
folder given, and its row in that file (0 for a text file). The two are hashed to a number in
[0, 1): below the test fraction it is a test document, then comes valid, the rest is train. Other
files coming or going move no document, and for rows the hash is one NumPy expression, SplitMix64.
"""

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data_prep import PrepareError, hub
from data_prep.cache import SPLITS
from data_prep.formats import KNOWN, kind_of, read_table, read_text
from data_prep.tokens import Encoded, encode

if TYPE_CHECKING:
    from datasets import DatasetDict

FRACTION = 0.05
Pieces = Generator[tuple[str, Encoded], None, None]


@dataclass
class Source:
    """Text to prepare.

    name: the caches' name unless another is asked for. request: JSON values that identify it.
    splits: those that must come out non-empty. read(self): yields (split, tokens) piece by piece,
    documents in order, and may add to `details` (for the manifest) and `remarks` (sentences for
    the user). size: bytes to come, roughly, None if that is not known.
    """

    name: str
    request: dict[str, Any]
    splits: list[str]
    read: Callable[["Source"], Pieces]
    size: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class File:
    """A file of documents; `key` is its path as it counts for splits, in POSIX form."""

    path: Path
    key: str
    size: int
    modified: int


@dataclass(frozen=True)
class Fractions:
    """The parts of the documents, each in [0, 1), that go to valid and test."""

    valid: float
    test: float

    def splits(self) -> list[str]:
        """The splits with a part above 0."""
        return ["train", *["valid"] * (self.valid > 0), *["test"] * (self.test > 0)]

    def assign(self, key: str, first_row: int, rows: int) -> np.ndarray:
        """Splits of a file's rows: (rows,) indices into SPLITS, of rows first_row onwards."""
        share = row_hashes(key, first_row, rows)
        return np.where(share < self.test, 2, np.where(share < self.test + self.valid, 1, 0))


def row_hashes(key: str, first_row: int, rows: int) -> np.ndarray:
    """Numbers in [0, 1), (rows,) float64, for the rows of a file from first_row on.

    Number r is output r of SplitMix64 (Steele et al. 2014) seeded with the first 8 bytes of
    SHA-256(key), its upper 53 bits over 2^53.
    """
    seed = np.uint64(int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:8], "little"))
    z = np.arange(first_row + 1, first_row + rows + 1, dtype=np.uint64)
    z = seed + z * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def stdlib_source(fractions: Fractions, root: Path | None = None) -> Source:
    """The *.py files of the interpreter's own standard library: text that needs no network.

    Packages named test or tests are left out, since not every distribution ships them, as is what
    pip installed. root: the library's folder, if it is not this interpreter's.
    Raises PrepareError when there are none.
    """
    folder = root or Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    files = [file for file in _walk(folder, skip) if file.path.suffix == ".py"]
    if not files:
        raise PrepareError(f"{folder} holds no .py files: give text of your own with --source")
    return Source(
        name="python-stdlib",
        request={
            "source": "python-stdlib",
            "python": sys.version.split()[0],
            "valid_fraction": fractions.valid,
            "test_fraction": fractions.test,
            "files_sha256": _fingerprint(files),
        },
        splits=fractions.splits(),
        read=partial(_read_stdlib, files, fractions),
        size=sum(file.size for file in files),
    )


def _read_stdlib(files: list[File], fractions: Fractions, source: Source) -> Pieces:
    skipped = []
    for file in files:
        try:
            text = file.path.read_bytes()
            text.decode()
        except UnicodeDecodeError:
            skipped.append(file.key)
            continue
        except OSError as error:
            raise PrepareError(f"{file.path} cannot be read ({error.strerror})") from None
        tokens = np.frombuffer(b"\0" + text, np.uint8)
        split = SPLITS[fractions.assign(file.key, 0, 1)[0]]
        yield split, Encoded(tokens, 1, int(b"\0" in text))
    source.details = {"files": len(files), "files_skipped": skipped}
    if skipped:
        source.remarks.append(f"Left out as not UTF-8: {len(skipped)} ({', '.join(skipped)}).")


def files_source(paths: list[Path], column: str, fractions: Fractions) -> Source:
    """Local files and folders, their documents split by `fractions`.

    Raises PrepareError for a path that does not exist, an unknown extension, a folder that holds
    nothing known.
    """
    files = [file for path in paths for file in _find(path)]
    _refuse_twice(files)
    name = paths[0].resolve().name
    return Source(
        name=name.split(".")[0] if paths[0].is_file() else name,
        request={
            "source": [str(path.resolve()) for path in paths],
            "column": column,
            "valid_fraction": fractions.valid,
            "test_fraction": fractions.test,
            "files_sha256": _fingerprint(files),
        },
        splits=fractions.splits(),
        read=partial(_read_files, [(file, None) for file in files], column, fractions),
        size=_text_size(files),
        details={"files": len(files)},
    )


def split_files_source(paths: dict[str, list[Path]], column: str) -> Source:
    """Local files and folders named for each split: {'train': [...], 'valid': [...], ...}.

    Raises PrepareError as files_source does, and for a file that is named twice.
    """
    files = [(file, split) for split in paths for path in paths[split] for file in _find(path)]
    found = [file for file, _ in files]
    _refuse_twice(found)
    return Source(
        name="local",
        request={
            "source": {split: [str(p.resolve()) for p in paths[split]] for split in paths},
            "column": column,
            "files_sha256": _fingerprint(found),
        },
        splits=list(paths),
        read=partial(_read_files, files, column, Fractions(0, 0)),
        size=_text_size(found),
        details={"files": len(files)},
    )


def _read_files(files: Sequence[tuple[File, str | None]], column: str, fractions: Fractions, source: Source) -> Pieces:
    for file, named in files:
        if kind_of(file.path) == "text":
            split = named or SPLITS[fractions.assign(file.key, 0, 1)[0]]
            for piece in read_text(file.path):
                yield split, piece
        else:
            arrays = read_table(file.path, column)
            yield from split_rows(arrays, file.key, named or fractions)


def hub_source(
    repository: str,
    column: str,
    config: str | None,
    revision: str | None,
    named: dict[str, str],
    fractions: dict[str, float],
    progress: bool = False,
) -> Source:
    """A data set of the Hugging Face hub, read with the `datasets` library.

    named: the data set's own names of splits, {'valid': 'validation', ...}; a split that is not
    named is looked for under its usual names. fractions: splits to carve out of the train rows
    instead; 0 to go without. progress: show how the download goes on stderr.
    Nothing is fetched before read().
    """
    return Source(
        name=repository.rpartition("/")[2],
        request={
            "source": f"hub:{repository}",
            "column": column,
            "config": config,
            "revision": revision,
            "splits": named,
            "fractions": fractions,
        },
        splits=[split for split in SPLITS if fractions.get(split) != 0],
        read=partial(
            _read_hub,
            partial(hub.load, repository, config, revision, progress),
            column,
            named,
            fractions,
        ),
    )


def _read_hub(
    load: Callable[[], "DatasetDict"],
    column: str,
    named: dict[str, str],
    fractions: dict[str, float],
    source: Source,
) -> Pieces:
    data = load()
    names = {
        split: hub.find_split(source.name, data, split, named.get(split))
        for split in source.splits
        if split not in fractions
    }
    carve = Fractions(fractions.get("valid", 0), fractions.get("test", 0))
    source.details = {"hub_splits": names, "fingerprints": {}}
    source.size = sum(hub.stored_bytes(data[name]) for name in names.values())
    for split, name in names.items():
        source.details["fingerprints"][name] = hub.fingerprint(data[name])
        arrays = hub.read(data[name], column, f"{source.name}, split {name},")
        yield from split_rows(arrays, name, carve if split == "train" else split)


def split_rows(arrays: Iterator[pa.Array], key: str, split: str | Fractions) -> Pieces:
    """Encode a table's text, all of it for one split, or row by row as the fractions say."""
    row = 0
    for array in arrays:
        if isinstance(split, str):
            yield split, encode(array)
        else:
            assigned = split.assign(key, row, len(array))
            for index in np.unique(assigned):
                yield SPLITS[index], encode(array.filter(pa.array(assigned == index)))
        row += len(array)


def _find(path: Path) -> list[File]:
    """A file, or all files of known kinds in a folder, in the order of their relative paths."""
    if path.is_dir():
        files = [file for file in _walk(path, set()) if kind_of(file.path)]
        if not files:
            raise PrepareError(f"{path} holds no files to read: it takes {KNOWN}")
        return files
    if not path.is_file():
        raise PrepareError(f"{path} does not exist: check the path")
    if not kind_of(path):
        raise PrepareError(f"{path} is not of a known kind, rename or convert it: {KNOWN}")
    return [_file(path, path.name)]


def _walk(root: Path, skip: set[str]) -> list[File]:
    """All regular files below root but for hidden ones and folders named in `skip`."""

    def refuse(error: OSError) -> None:
        raise PrepareError(f"{error.filename} cannot be read ({error.strerror}): check its mode")

    files = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in skip and name[0] != "."]
        paths = [Path(folder, name) for name in names if name[0] != "."]
        files += [_file(p, p.relative_to(root).as_posix()) for p in paths if p.is_file()]
    return sorted(files, key=lambda file: file.key)


def _file(path: Path, key: str) -> File:
    status = path.stat()
    return File(path, key, status.st_size, status.st_mtime_ns)


def _fingerprint(files: list[File]) -> str:
    listing = [[file.key, file.size, file.modified] for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _text_size(files: list[File]) -> int | None:
    """Bytes of text in files where those are the files' own, None if any is compressed."""
    if all(file.path.suffix.lower() in (".txt", ".md", ".arrow") for file in files):
        return sum(file.size for file in files)
    return None


def _refuse_twice(files: list[File]) -> None:
    seen = set()
    for file in files:
        path = file.path.resolve()
        if path in seen:
            raise PrepareError(f"{file.path} is named twice: name every file once")
        seen.add(path)
