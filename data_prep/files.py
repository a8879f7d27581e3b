"""Files of documents: found in folders, fingerprinted, pipes copied."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from data_prep import streams
from data_prep.streams import KNOWN, Input, kind_of
from nanoegg_mlx.errors import InputError


@dataclass(frozen=True)
class File:
    """A file of documents. key: the path that decides its documents' splits, in POSIX form."""

    path: Path
    key: str
    size: int
    modified: int
    content: Input


def find(path: Path) -> list[File]:
    """Returns a file, a pipe's copy, or all files of known kinds in a folder, in the order of their relative paths."""
    if path.is_dir():
        files = [file for file in walk(path, set()) if kind_of(file.path)]
        if not files:
            raise InputError(f"The folder {path} has no files to read; it must have {KNOWN}.")
        return files
    if streams.is_pipe(path):
        copy, digest = streams.spool(path)
        # The content identifies a pipe: its name and times do not.
        return [File(path, "pipe", streams.file_size(copy.path), int(digest[:15], 16), copy)]
    if not path.is_file():
        raise InputError(f"The file {path} does not exist; it must be a file or a folder.")
    if not kind_of(path):
        raise InputError(f"The file {path} is of an unknown kind; it must be {KNOWN}.")
    return [_file(path, path.name)]


def walk(root: Path, skip: set[str]) -> list[File]:
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
    return File(path, key, status.st_size, status.st_mtime_ns, Input.of(path))


def fingerprint(files: list[File]) -> str:
    """Returns the SHA-256 of the files' keys, sizes and times."""
    listing = [[file.key, file.size, file.modified] for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def text_size(files: list[File]) -> int | None:
    """Returns the bytes of text where the files' sizes give it, None if any file is of another kind."""
    if all(file.content.codec is None and file.content.kind in ("text", "arrow") for file in files):
        return sum(file.size for file in files)
    return None


def refuse_twice(files: list[File]) -> None:
    """Raises InputError if a file is among the files twice."""
    seen = set()
    for file in files:
        path = file.path.resolve()
        if path in seen:
            raise InputError(f"The file {file.path} is named twice; it must be named once.")
        seen.add(path)
