"""Sources of text: a hub data set, local files, or the sources of the interpreter's standard library.

A Source has a `request`, which identifies the text and is kept in the manifest, and `read()`, which yields the tokens
of all splits piece by piece.

Notable: a document's split depends only on its file's path, relative to the given folder, and its row in that file (0
for a text file). The two are hashed to a number in [0, 1): below the test fraction the document belongs to test, then
to valid, otherwise to train. So a document stays in its split when other files are added or removed. For rows the hash
is one NumPy expression, SplitMix64.
"""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data_prep import hub, saved, single
from data_prep.cache import SPLITS
from data_prep.files import File, find, fingerprint, refuse_twice, text_size, walk
from data_prep.formats import read_table, read_text
from data_prep.streams import ignore
from data_prep.tokens import Encoded, encode
from nanoegg_mlx.errors import InputError

if TYPE_CHECKING:
    from datasets import DatasetDict

FRACTION = 0.05
SINGLE_FRACTION = 0.1
Pieces = Generator[tuple[str, Encoded], None, None]


@dataclass
class Source:
    """Text to prepare.

    name: the default name of the caches. request: JSON values that identify the text. splits: the splits, none of which
    may be empty. read(self): yields (split, tokens) piece by piece, documents in order, and may add to `details` (for
    the manifest) and `remarks` (sentences for the user). size: approximate number of bytes, None if unknown.
    isolated: whether a child process must read it, since damaged input may end the process. fetch(): if given, makes
    `fetched` before the text is read. reading(name): called before an input is read.
    """

    name: str
    request: dict[str, Any]
    splits: list[str]
    read: Callable[["Source"], Pieces]
    size: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    isolated: bool = False
    fetch: Callable[[], Any] | None = None
    fetched: Any = None
    reading: Callable[[str], None] = ignore


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
    files = [file for file in walk(folder, skip) if file.path.suffix == ".py"]
    if not files:
        raise InputError(f"The folder {folder} has no .py files; --source must name other text.")
    return Source(
        name="python-stdlib",
        request={
            "source": "python-stdlib",
            "python": sys.version.split()[0],
            "valid_fraction": fractions.valid,
            "test_fraction": fractions.test,
            "files_sha256": fingerprint(files),
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


def files_source(paths: list[Path], column: str, fractions: Fractions, by_position: Fractions | None = None) -> Source:
    """Returns local files and folders, their documents split by `fractions`.

    by_position: the parts of the text if it is a single text file, which is cut by position (default: fractions).
    Raises InputError for a path that does not exist, a file of an unknown kind or named twice, and a folder without
    files of a known kind.
    """
    files = [file for path in paths for file in find(path)]
    refuse_twice(files)
    name = paths[0].resolve().name
    request: dict[str, Any] = {"source": _shown(paths, files), "column": column}
    if len(files) == 1 and files[0].content.kind == "text":
        parts = by_position or fractions
        read, request["split"] = partial(single.read, files[0].content, parts), single.SPLIT
    else:
        parts, read = fractions, partial(_read_files, [(file, None) for file in files], column, fractions)
    request |= {
        "valid_fraction": parts.valid,
        "test_fraction": parts.test,
        "files_sha256": fingerprint(files),
    }
    return Source(
        name="pipe" if files[0].key == "pipe" else name if paths[0].is_dir() else name.split(".")[0],
        request=request,
        splits=parts.splits(),
        read=read,
        size=text_size(files),
        details={"files": len(files)},
        isolated=_untrusted(files),
    )


def split_files_source(paths: dict[str, list[Path]], column: str) -> Source:
    """Returns local files and folders named for each split: {'train': [...], 'valid': [...], ...}.

    Raises InputError as files_source does.
    """
    files = [(file, split) for split in paths for path in paths[split] for file in find(path)]
    found = [file for file, _ in files]
    refuse_twice(found)
    return Source(
        name="local",
        request={
            "source": {split: _shown(paths[split], [f for f, s in files if s == split]) for split in paths},
            "column": column,
            "files_sha256": fingerprint(found),
        },
        splits=list(paths),
        read=partial(_read_files, files, column, Fractions(0, 0)),
        size=text_size(found),
        details={"files": len(files)},
        isolated=_untrusted(found),
    )


def saved_source(
    folder: Path, found: dict[str, list[Path]], column: str, named: dict[str, str], fractions: dict[str, float]
) -> Source:
    """Returns a data set that lies in a local folder (saved.find_splits), by its own splits.

    found: the files of its own splits. named, fractions: as for hub_source. A split that the data set lacks is taken
    from the train rows too.
    Raises InputError when a named split is missing.
    """
    names: dict[str, str] = {}
    for split in SPLITS:
        if split in named or split == "train" or not (split in fractions or hub.has_split(found, split)):
            if split == "train" or split in named:
                names[split] = hub.find_split(str(folder), found, split, named.get(split))
            else:
                fractions = {**fractions, split: FRACTION}
        elif split not in fractions:
            names[split] = hub.find_split(str(folder), found, split, None)
    carve = Fractions(fractions.get("valid", 0), fractions.get("test", 0))
    files = [(file, split) for split, name in names.items() for path in found[name] for file in find(path)]
    return Source(
        name=saved.name_of(folder),
        request={
            "source": [str(folder.resolve())],
            "column": column,
            "splits": names,
            "fractions": fractions,
            "files_sha256": fingerprint([file for file, _ in files]),
        },
        splits=[split for split in SPLITS if split in names or fractions.get(split)],
        read=partial(
            _read_files, [(file, None if split == "train" else split) for file, split in files], column, carve
        ),
        size=text_size([file for file, _ in files]),
        details={"files": len(files), "own_splits": names},
        isolated=True,
    )


def _shown(paths: list[Path], files: list[File]) -> list[str]:
    """Returns the paths as the manifest has them. A pipe's path differs in each run."""
    pipes = {file.path for file in files if file.key == "pipe"}
    return ["pipe" if path in pipes else str(path.resolve()) for path in paths]


def _untrusted(files: list[File]) -> bool:
    """Returns whether any file is read by Arrow's code."""
    return any(file.content.kind != "text" for file in files)


def _read_files(files: Sequence[tuple[File, str | None]], column: str, fractions: Fractions, source: Source) -> Pieces:
    empty = []
    for file, named in files:
        source.reading(file.content.name)
        documents = 0
        for split, piece in _read_file(file, named, column, fractions, source):
            documents += piece.documents * (len(piece.tokens) > 1) + piece.null_documents
            yield split, piece
        if not documents:
            empty.append(file.key)
    if empty:
        source.remarks.append(f"Files without text: {len(empty)} ({', '.join(empty[:5])}{', ...' * (len(empty) > 5)}).")


def _read_file(file: File, named: str | None, column: str, fractions: Fractions, source: Source) -> Pieces:
    content = replace(file.content, remark=source.remarks.append)
    if content.kind == "text":
        split = named or SPLITS[fractions.assign(file.key, 0, 1)[0]]
        for piece in read_text(content):
            yield split, piece
    else:
        arrays = read_table(content, column)
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
        read=partial(_read_hub, column, named, fractions),
        isolated=True,
        fetch=partial(hub.load, repository, config, revision, progress),
    )


def _read_hub(column: str, named: dict[str, str], fractions: dict[str, float], source: Source) -> Pieces:
    source.reading(f"The data set {source.name}")
    data: DatasetDict = source.fetched or source.fetch()  # type: ignore[misc]
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
