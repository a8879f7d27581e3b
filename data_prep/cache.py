"""The caches on disk: `<name>_train.npy`, `_valid.npy`, `_test.npy` and `<name>_manifest.json`.

Notable: a set of caches appears whole or not at all. A run writes into its own staging folder beside the caches,
`.<name>.XXXXXXXX.partial`. When all caches are on disk, it renames the manifest into the staging folder: this is the
commit. Then the caches are moved into place, the manifest last. The next run removes the staging folder of a run that
died before the commit, and finishes the moves of one that died after it. Each run holds a lock on its staging folder;
the system releases it with the process, so a free lock means a dead run.

Each .npy equals, byte for byte, the output of np.save for the whole array. The header's size does not depend on the
array's length, so it is written first and receives the length at the end.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_prep.tokens import Encoded
from nanoegg_mlx.errors import InputError

SPLITS = ("train", "valid", "test")
FORMAT_VERSION = 1
HEADER_BYTES = 128
COMMITTED = "manifest.json"


def cache_path(folder: Path, name: str, split: str) -> Path:
    """Returns the path of a split's .npy file (split: 'train', 'valid' or 'test')."""
    return folder / f"{name}_{split}.npy"


def manifest_path(folder: Path, name: str) -> Path:
    """Returns the path of the manifest. A set without one is incomplete."""
    return folder / f"{name}_manifest.json"


class CacheWriter:
    """Writes one split's .npy file piece by piece."""

    def __init__(self, path: Path):
        self.path = path
        self.documents = self.bytes = self.documents_with_nul = self.null_documents = 0
        self._hash = hashlib.sha256()
        with _writing(path):
            # Unbuffered: pieces are large, and close() must not fail on a full disk.
            self._file: BinaryIO = open(path, "xb", buffering=0)  # noqa: SIM115
            _write_all(self._file, header(0))

    def write(self, piece: Encoded) -> None:
        """Appends tokens. Raises InputError when the disk is full."""
        data = piece.tokens.data
        with _writing(self.path):
            _write_all(self._file, data)
        self._hash.update(data)
        self.bytes += len(data)
        self.documents += piece.documents
        self.documents_with_nul += piece.documents_with_nul
        self.null_documents += piece.null_documents

    def finish(self) -> dict[str, Any]:
        """Writes the length into the header, syncs and closes the file. Returns the manifest's entry."""
        with _writing(self.path):
            self._file.seek(0)
            _write_all(self._file, header(self.bytes))
            os.fsync(self._file.fileno())
        self.close()
        return {
            "file": self.path.name,
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens_sha256": self._hash.hexdigest(),
            "documents_with_nul": self.documents_with_nul,
            "null_documents": self.null_documents,
        }

    def close(self) -> None:
        self._file.close()


def header(count: int) -> bytes:
    """Returns the HEADER_BYTES that np.save writes before a uint8 array of shape (count,)."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count},), }}"
    magic = np.lib.format.magic(1, 0)
    size = HEADER_BYTES - len(magic) - 2
    return magic + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"


@contextmanager
def staging(folder: Path, name: str, waiting: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Makes a staging folder inside `folder`, and removes it afterwards unless it is committed.

    Makes `folder` if it does not exist, and removes it again if the run fails. While another process prepares a set
    of the same name, calls `waiting` and waits until that process ends.
    Raises InputError when the folder cannot be written to.
    """
    with _writing(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            with _locked(folder):
                other = _living(folder, name)
                if other is None:
                    stage = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=folder))
                    handle = os.open(stage, os.O_RDONLY)
                    _try_lock(handle)
                    break
            try:
                waiting()
                fcntl.flock(other, fcntl.LOCK_EX)
            finally:
                os.close(other)
    try:
        yield stage
    finally:
        if not (stage / COMMITTED).exists():
            shutil.rmtree(stage, ignore_errors=True)
        os.close(handle)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def publish(stage: Path, folder: Path, name: str, manifest: dict[str, Any], force: bool) -> dict[str, Any]:
    """Moves a finished set from its staging folder into place, in one step as seen by later runs.

    manifest: must have 'request' and 'splits'. Without `force` no existing set is replaced, also not one that another
    run has made in the meantime.
    Returns the manifest in place. Raises InputError as `existing` does.
    """
    with _writing(folder), _locked(folder):
        _recover(folder, name)
        if not force and (present := existing(folder, name, manifest["request"])):
            return present
        draft = stage / "manifest.draft"
        with open(draft, "x") as file:
            file.write(json.dumps(manifest, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _fsync_folder(stage)
        os.replace(draft, stage / COMMITTED)
        _fsync_folder(stage)
        _move_out(stage, folder, name)
    return manifest


def recover(folder: Path, name: str) -> None:
    """Cleans up after runs that died: finishes the moves of a committed set, removes any other."""
    if folder.is_dir():
        with _writing(folder), _locked(folder):
            _recover(folder, name)


def existing(folder: Path, name: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest of the complete set that this request made, None if no file has that name.

    Raises InputError for anything else under that name: a set from another request, a set with files missing or of
    the wrong size, or caches without a manifest.
    """
    remedy = "it must be replaced with --force, or kept by another --name."
    path = manifest_path(folder, name)
    if not path.exists():
        for split in SPLITS:
            cache = cache_path(folder, name, split)
            if cache.exists():
                raise InputError(f"The cache {cache} exists without a {path.name}; {remedy}")
        return None
    manifest = read_manifest(folder, name)
    made_from = manifest["request"]
    if made_from != request:
        keys = {key: None for key in (*request, *made_from)}
        key = next(key for key in keys if request.get(key) != made_from.get(key))
        raise InputError(
            f"The set of {path} was made from another source ({key}: {_short(made_from.get(key))} then, "
            f"{_short(request.get(key))} now); {remedy}"
        )
    for entry in manifest["splits"].values():
        cache = folder / entry["file"]
        if not cache.exists() or cache.stat().st_size != HEADER_BYTES + entry["bytes"]:
            raise InputError(f"The cache {cache} is missing or its size differs from {path.name}; {remedy}")
    return manifest


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """Returns the manifest of a set. Raises InputError when it is missing or not a manifest."""
    path = manifest_path(folder, name)
    try:
        manifest = json.loads(path.read_bytes())
        if (
            manifest["format_version"] == FORMAT_VERSION
            and isinstance(manifest["request"], dict)
            and all(_is_entry(entry, cache_path(folder, name, split)) for split, entry in manifest["splits"].items())
        ):
            return manifest
    except FileNotFoundError:
        raise InputError(f"The manifest {path} does not exist; the set must be prepared first.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise InputError(f"The manifest {path} is unreadable; the set must be prepared again with --force.")


def _is_entry(entry: dict[str, Any], path: Path) -> bool:
    """Whether a manifest's entry describes the cache `path`, with figures of the right types."""
    counts = [entry[name] for name in ("bytes", "documents", "documents_with_nul", "null_documents")]
    return (
        entry["file"] == path.name
        and isinstance(entry["tokens_sha256"], str)
        and all(type(count) is int and 0 <= count < 1 << 63 for count in counts)
    )


def check(folder: Path, name: str) -> dict[str, Any]:
    """Reads a set and compares headers, sizes and SHA-256 with its manifest.

    Returns the manifest. Raises InputError for the first file that differs.
    """
    manifest = read_manifest(folder, name)
    for entry in manifest["splits"].values():
        path = folder / entry["file"]
        digest, size = hashlib.sha256(), 0
        try:
            with open(path, "rb") as file:
                head = file.read(HEADER_BYTES)
                while piece := file.read(1 << 20):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            raise InputError(
                f"The cache {path} cannot be read ({error.strerror}); it must be a readable file."
            ) from None
        if (head, size, digest.hexdigest()) != (
            header(entry["bytes"]),
            entry["bytes"],
            entry["tokens_sha256"],
        ):
            raise InputError(
                f"The cache {path} differs from its manifest; the set must be prepared again with --force."
            )
    return manifest


def _stages(folder: Path, name: str) -> list[Path]:
    """Returns the staging folders of that name."""
    ours = re.compile(rf"\.{re.escape(name)}\.[^.]+\.partial")
    return [path for path in sorted(folder.iterdir()) if ours.fullmatch(path.name)]


def _living(folder: Path, name: str) -> int | None:
    """Returns an open descriptor of a staging folder that a living process has locked, None if there is none."""
    for stage in _stages(folder, name):
        handle = os.open(stage, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return handle
        except OSError:  # The file system has no locks.
            pass
        os.close(handle)
    return None


def _recover(folder: Path, name: str) -> None:
    for stage in _stages(folder, name):
        handle = os.open(stage, os.O_RDONLY)
        try:
            if _try_lock(handle):
                if (stage / COMMITTED).exists():
                    _move_out(stage, folder, name)
                shutil.rmtree(stage)
        finally:
            os.close(handle)


def _move_out(stage: Path, folder: Path, name: str) -> None:
    """Makes the moves after the commit. May be repeated from any point of interruption."""
    wanted = json.loads((stage / COMMITTED).read_bytes())["splits"]
    manifest_path(folder, name).unlink(missing_ok=True)
    _fsync_folder(folder)
    for split in SPLITS:
        cache = cache_path(folder, name, split)
        staged = stage / cache.name
        if staged.exists():
            os.replace(staged, cache)
        elif split not in wanted:
            cache.unlink(missing_ok=True)
    _fsync_folder(folder)
    os.replace(stage / COMMITTED, manifest_path(folder, name))
    _fsync_folder(folder)


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time create, move and remove staging folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Without locks in the file system, a single run is still safe.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns system errors while writing into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"The path {path} cannot be written ({error.strerror or error}); it must be a writable folder with room "
            "left (--out)."
        ) from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
