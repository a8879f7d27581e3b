"""The caches on disk: `<name>_train.npy`, `_valid.npy`, `_test.npy` and `<name>_manifest.json`.

Notable: a set of caches appears whole or not at all. A run writes into a staging folder of its
own beside the caches, `.<name>.XXXXXXXX.partial`. When all is written and on disk, the manifest is
put into the staging folder too: that is the moment the run counts as done. The caches are then
moved into place, the manifest last. A run that dies before that moment leaves rubbish, which the
next run removes; one that dies after it leaves a set that the next run moves the rest of.
The folder of a living run is told from a dead one's by a lock, which the system drops with the
process. Each .npy is, byte for byte, what np.save writes for the whole array: its header has the
same length whatever the array's, so it is written first and gets the length at the end.
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

from data_prep import PrepareError
from data_prep.tokens import Encoded

SPLITS = ("train", "valid", "test")
FORMAT_VERSION = 1
HEADER_BYTES = 128
COMMITTED = "manifest.json"


def cache_path(folder: Path, name: str, split: str) -> Path:
    """The .npy file of a split ('train', 'valid' or 'test')."""
    return folder / f"{name}_{split}.npy"


def manifest_path(folder: Path, name: str) -> Path:
    """The manifest, without which the caches of that name are no whole set."""
    return folder / f"{name}_manifest.json"


class CacheWriter:
    """Writes one split's .npy file piece by piece; sizes, counts and hash come from finish()."""

    def __init__(self, path: Path):
        self.path = path
        self.documents = self.bytes = self.documents_with_nul = self.null_documents = 0
        self._hash = hashlib.sha256()
        with _writing(path):
            # Unbuffered: pieces are large, and closing must not be able to fail on a full disk.
            self._file: BinaryIO = open(path, "xb", buffering=0)  # noqa: SIM115
            _write_all(self._file, header(0))

    def write(self, piece: Encoded) -> None:
        """Append tokens. Raises PrepareError when the disk is full."""
        data = piece.tokens.data
        with _writing(self.path):
            _write_all(self._file, data)
        self._hash.update(data)
        self.bytes += len(data)
        self.documents += piece.documents
        self.documents_with_nul += piece.documents_with_nul
        self.null_documents += piece.null_documents

    def finish(self) -> dict[str, Any]:
        """Write the length into the header, wait for the disk, close; the manifest's entry."""
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
    """The HEADER_BYTES that np.save writes before a uint8 array of shape (count,)."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count},), }}"
    magic = np.lib.format.magic(1, 0)
    size = HEADER_BYTES - len(magic) - 2
    return magic + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"


@contextmanager
def staging(folder: Path, name: str, waiting: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """A new folder inside `folder` to write a set into; gone afterwards, unless left committed.

    Makes `folder` if need be, and takes it back should nothing come of the run. Where another process is at work on
    a set of that name, calls `waiting` and waits until it is done with it or dead.
    Raises PrepareError when it cannot be written to.
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
    """Move a finished set from its staging folder into place, in one step as seen by later runs.

    manifest: needs 'request' and 'splits'. Without `force`, nothing that is there is replaced:
    if another run has meanwhile made the same set, that one stays.
    Returns the manifest that is in place; raises PrepareError as `existing` does.
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
    """Clear up after runs that died: finish the moves of a committed set, remove any other."""
    if folder.is_dir():
        with _writing(folder), _locked(folder):
            _recover(folder, name)


def existing(folder: Path, name: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the whole set that this request made, None if there is nothing there.

    Raises PrepareError when there is anything else under that name: a set from another request,
    one with files missing or of the wrong size, or caches without a manifest.
    """
    way_out = "pass --force to replace what is there, or another --name to keep it"
    path = manifest_path(folder, name)
    if not path.exists():
        for split in SPLITS:
            cache = cache_path(folder, name, split)
            if cache.exists():
                raise PrepareError(f"{cache} is there without a {path.name}: {way_out}")
        return None
    manifest = read_manifest(folder, name)
    made_from = manifest["request"]
    if made_from != request:
        keys = {key: None for key in (*request, *made_from)}
        key = next(key for key in keys if request.get(key) != made_from.get(key))
        raise PrepareError(
            f"{path} was made from something else ({key}: {_short(made_from.get(key))} there, "
            f"{_short(request.get(key))} now): {way_out}"
        )
    for entry in manifest["splits"].values():
        cache = folder / entry["file"]
        if not cache.exists() or cache.stat().st_size != HEADER_BYTES + entry["bytes"]:
            raise PrepareError(f"{cache} is not as {path.name} has it: {way_out}")
    return manifest


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """The manifest of a set. Raises PrepareError when there is none or it makes no sense."""
    path = manifest_path(folder, name)
    try:
        manifest = json.loads(path.read_bytes())
        entries = manifest["splits"].values()
        if (
            manifest["format_version"] == FORMAT_VERSION
            and isinstance(manifest["request"], dict)
            and all({"file", "bytes", "documents", "tokens_sha256"} <= e.keys() for e in entries)
        ):
            return manifest
    except FileNotFoundError:
        raise PrepareError(f"{path} does not exist: prepare that set first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise PrepareError(f"{path} is not a manifest that can be read: prepare the set with --force")


def check(folder: Path, name: str) -> dict[str, Any]:
    """Read a set back and hold it against its manifest, headers, sizes and SHA-256.

    Returns the manifest; raises PrepareError for the first file that differs.
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
            raise PrepareError(f"{path} cannot be read ({error.strerror})") from None
        if (head, size, digest.hexdigest()) != (
            header(entry["bytes"]),
            entry["bytes"],
            entry["tokens_sha256"],
        ):
            raise PrepareError(f"{path} is not as its manifest has it: prepare the set again with --force")
    return manifest


def _stages(folder: Path, name: str) -> list[Path]:
    """The staging folders of that name."""
    ours = re.compile(rf"\.{re.escape(name)}\.[^.]+\.partial")
    return [path for path in sorted(folder.iterdir()) if ours.fullmatch(path.name)]


def _living(folder: Path, name: str) -> int | None:
    """An open descriptor of a staging folder that a living process works in, None if there is none to be told."""
    for stage in _stages(folder, name):
        handle = os.open(stage, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return handle
        except OSError:  # a file system without locks
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
    """The moves after the commit; may be repeated from any point at which they were cut short."""
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
    """One process at a time: creating, moving and clearing of staging folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        # A file system without locks is still one where a single run is safe.
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
    """Errors of the system while writing, as a PrepareError that names the path."""
    try:
        yield
    except OSError as error:
        raise PrepareError(
            f"{path} cannot be written ({error.strerror or error}): make room there or choose another folder with --out"
        ) from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
