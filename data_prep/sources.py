"""Sources of text: a hub data set, local files, or the sources of the interpreter's standard library.

A Source has a `request`, which identifies the text and is kept in the manifest, and `read()`, which yields the tokens
of all splits piece by piece.

Notable: a document's split depends only on its file's path, relative to the given folder, and its row in that file (0
for a text file). The two are hashed to a number in [0, 1): below the test fraction the document belongs to test, then
to valid, otherwise to train. So a document stays in its split when other files are added or removed. For rows the hash
is one NumPy expression, SplitMix64.
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

from data_prep import hub
from data_prep.cache import SPLITS
from data_prep.formats import KNOWN, kind_of, read_table, read_text
from data_prep.tokens import Encoded, encode
from nanoegg_mlx.errors import InputError

if TYPE_CHECKING:
    from datasets import DatasetDict

FRACTION = 0.05
Pieces = Generator[tuple[str, Encoded], None, None]


@dataclass
class Source:
    """Text to prepare.

    name: the default name of the caches. request: JSON values that identify the text. splits: the splits, none of which
    may be empty. read(self): yields (split, tokens) piece by piece, documents in order, and may add to `details` (for
    the manifest) and `remarks` (sentences for the user). size: approximate number of bytes, None if unknown.
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
    """A file of documents. key: the path that decides its documents' splits, in POSIX form."""

    path: Path
    key: str
    size: int
    modified: int


@dataclass(frozen=True)
class Fractions:
    """The fractions of the documents, each in [0, 1), that go to valid and test."""

    valid: float
    test: float

    def splits(self) -> list[str]:
        """Returns the splits with a fraction above 0."""
        return ["train", *["valid"] * (self.valid > 0), *["test"] * (self.test > 0)]

    def assign(self, key: str, first_row: int, rows: int) -> np.ndarray:
        """Returns (rows,) indices into SPLITS, for the rows of a file from first_row on."""
        share = row_hashes(key, first_row, rows)
        return np.where(share < self.test, 2, np.where(share < self.test + self.valid, 1, 0))


def row_hashes(key: str, first_row: int, rows: int) -> np.ndarray:
    """Returns (rows,) float64 in [0, 1), for the rows of a file from first_row on.

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
    """Returns the *.py files of the interpreter's standard library: text that needs no network.

    Packages named test or tests are left out, since not every distribution ships them, and so are installed packages.
    root: the library's folder (default: this interpreter's).
    Raises InputError when the folder has no .py files.
    """
    folder = root or Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    files = [file for file in _walk(folder, skip) if file.path.suffix == ".py"]
    if not files:
        raise InputError(f"The folder {folder} has no .py files; --source must name other text.")
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
            raise InputError(f"The file {file.path} cannot be read ({error.strerror}); it must be readable.") from None
        tokens = np.frombuffer(b"\0" + text, np.uint8)
        split = SPLITS[fractions.assign(file.key, 0, 1)[0]]
        yield split, Encoded(tokens, 1, int(b"\0" in text))
    source.details = {"files": len(files), "files_skipped": skipped}
    if skipped:
        source.remarks.append(f"Left out as not UTF-8: {len(skipped)} ({', '.join(skipped)}).")


def files_source(paths: list[Path], column: str, fractions: Fractions) -> Source:
    """Returns local files and folders, their documents split by `fractions`.

    Raises InputError for a path that does not exist, a file of an unknown kind or named twice, and a folder without
    files of a known kind.
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
    """Returns local files and folders named for each split: {'train': [...], 'valid': [...], ...}.

    Raises InputError as files_source does.
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
    """Returns a data set of the Hugging Face hub, read with the `datasets` library. read() downloads it.

    named: the data set's own names of splits, {'valid': 'validation', ...}; other splits are found by their usual
    names. fractions: splits to take from the train rows instead; 0 leaves the split out. progress: whether to show the
    download's progress on stderr.
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
        arrays = hub.read(data[name], column, f"The split {name} of {source.name}")
        yield from split_rows(arrays, name, carve if split == "train" else split)


def split_rows(arrays: Iterator[pa.Array], key: str, split: str | Fractions) -> Pieces:
    """Encodes a table's rows, all for one split or each for the split that the fractions assign."""
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
    """Returns a file, or all files of known kinds in a folder, in the order of their relative paths."""
    if path.is_dir():
        files = [file for file in _walk(path, set()) if kind_of(file.path)]
        if not files:
            raise InputError(f"The folder {path} has no files to read; it must have {KNOWN}.")
        return files
    if not path.is_file():
        raise InputError(f"The file {path} does not exist; it must be a file or a folder.")
    if not kind_of(path):
        raise InputError(f"The file {path} is of an unknown kind; it must be {KNOWN}.")
    return [_file(path, path.name)]


def _walk(root: Path, skip: set[str]) -> list[File]:
    """Returns the regular files below root, without hidden ones and folders named in `skip`."""

    def refuse(error: OSError) -> None:
        raise InputError(f"The folder {error.filename} cannot be read ({error.strerror}); it must be readable.")

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
    """Returns the bytes of text from the files' sizes, None if a file has a kind whose size differs from its text's."""
    if all(file.path.suffix.lower() in (".txt", ".md", ".arrow") for file in files):
        return sum(file.size for file in files)
    return None


def _refuse_twice(files: list[File]) -> None:
    seen = set()
    for file in files:
        path = file.path.resolve()
        if path in seen:
            raise InputError(f"The file {file.path} is named twice; it must be named once.")
        seen.add(path)
