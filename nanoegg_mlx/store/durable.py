"""Files that survive a power cut: written under a temporary name, flushed, renamed, and their folder flushed too.

All files of a run are written through this module, so the effect of a full or failing disk can be tested in one place.
Writing is unbuffered, so that closing a file cannot fail.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanoegg_mlx.errors import InputError

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EPERM}
"""Errors of file systems (NFS, Lustre, mounted drives) that lack locks, links, or flushing of folders."""
_warned: set[str] = set()


class HashedFile(io.FileIO):
    """A new file, written once from front to back, with the SHA-256 of its content."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x")
        self._hash = hashlib.sha256()

    def write(self, content: Any, /) -> int:
        """Writes all of `content`. Raises OSError if the system does."""
        view = memoryview(content).cast("B")
        self._hash.update(view)
        rest = view
        while rest:  # the system may write a part only
            rest = rest[os.write(self.fileno(), rest) :]
        return len(view)

    def finish(self) -> str:
        """Flushes the file to disk, closes it and returns the SHA-256 as hexadecimal digits."""
        os.fsync(self.fileno())
        self.close()
        return self._hash.hexdigest()


class AppendOnly:
    """A file that grows by whole records; `size` counts the bytes of whole records."""

    def __init__(self, path: Path, size: int) -> None:
        """Opens or creates `path` and truncates it to its first `size` bytes."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.size = size
        self._path = path
        self._truncate()

    def append(self, record: bytes) -> None:
        """Writes a whole record. Raises OSError if the system does; the next record then overwrites the torn one."""
        # pwrite, since a failed write moves a file's own offset: the next record would follow the torn one.
        written = 0
        while written < len(record):
            written += os.pwrite(self._descriptor, record[written:], self.size + written)
        self.size += len(record)

    def sync(self) -> None:
        """Waits until all records are on disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file, truncating a record that could not be written whole."""
        if self._descriptor >= 0:
            try:
                self._truncate()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _truncate(self) -> None:
        if os.fstat(self._descriptor).st_size == self.size:
            return
        try:
            os.ftruncate(self._descriptor, self.size)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            # Some mounted drives only append. There the whole records move to a new file.
            write_file(self._path, os.pread(self._descriptor, self.size, 0))
            os.close(self._descriptor)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)


class Lock:
    """Exclusive use of a run's folder by one process; the system releases it when the process ends, even by a kill."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError, naming the other process, if the folder is in use."""
        self._descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise InputError(
                f"The run {folder} is in use by process {owner}; it must be unused: wait for that process or end it."
            ) from error
        except OSError as error:
            _degrade(error, f"{folder} is on a file system without locks: do not let two processes train in it at once")
        # The number of the process is for the message only; of one length, so that it covers an earlier one.
        os.pwrite(self._descriptor, f"{os.getpid():<20}\n".encode(), 0)

    def release(self) -> None:
        """Releases the lock."""
        os.close(self._descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Replaces a file atomically: at any moment it has the old content or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    # The content must be on disk before the rename: a power cut could otherwise leave the new name on an empty file.
    with HashedFile(temporary) as file:
        file.write(content)
        file.finish()
    os.replace(temporary, path)
    sync_folder(path.parent)


def create_file(path: Path, content: bytes) -> None:
    """Writes a new file atomically. Raises FileExistsError if the name is in use, and nothing has changed then."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with HashedFile(temporary) as file:
            file.write(content)
            file.finish()
        name_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def name_new(temporary: Path, path: Path) -> None:
    """Gives a file its name. Raises FileExistsError if the name is in use, and nothing has changed then."""
    try:
        # Unlike a rename, a link never replaces a file.
        os.link(temporary, path)
    except OSError as error:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        if error.errno not in _UNSUPPORTED:
            raise
        os.rename(temporary, path)
    else:
        temporary.unlink()


def create_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes a new folder with these files atomically. Raises OSError if the name is in use by a file or a folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, content in files.items():
            with HashedFile(temporary / name) as file:
                file.write(content)
                file.finish()
        sync_folder(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def point(link: Path, target: str) -> None:
    """Points the symbolic link at `target`, atomically: the link is never missing.

    Without symbolic links it becomes a text file with the name. A folder in its place, as copies of a run have, is
    replaced.
    """
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.symlink(target, temporary)
    except OSError as error:
        _degrade(error, f"{link.parent} is on a file system without symbolic links: the links in it are text files")
        temporary.write_text(target + "\n")
    if link.is_dir() and not link.is_symlink():
        hidden = link.with_name(f".{link.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(link, hidden)
        os.replace(temporary, link)
        shutil.rmtree(hidden)
    else:
        os.replace(temporary, link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the folder's entries are on disk: names and renames belong to the folder, not to the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        _degrade(error, f"{folder} is on a file system whose folders cannot be flushed: a power cut may undo renames")
    finally:
        os.close(descriptor)


def _degrade(error: OSError, warning: str) -> None:
    """Prints a warning, once for each kind, if the file system lacks an operation; raises any other error."""
    if error.errno not in _UNSUPPORTED:
        raise error
    kind = warning.partition(" is on a file system ")[2]
    if kind not in _warned:
        _warned.add(kind)
        print(f"warning: {warning}.", file=sys.stderr)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content as hexadecimal digits. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
