"""Files that survive a power cut: written under a temporary name, flushed, renamed, and their folder flushed too.

Everything that a run leaves on disk goes through here, so what a full disk or a failing one does to it can be tested in
one place. All writing is unbuffered: nothing is left to fail when a file is closed.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
from pathlib import Path
from typing import Any

from nanoegg_mlx.errors import InputError


class HashedFile(io.FileIO):
    """A new file that knows the SHA-256 of what was written to it, in one go from front to back."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x")
        self._hash = hashlib.sha256()

    def write(self, content: Any, /) -> int:
        """Writes all of `content`. Raises OSError where the system does."""
        view = memoryview(content).cast("B")
        self._hash.update(view)
        rest = view
        while rest:
            rest = rest[os.write(self.fileno(), rest) :]
        return len(view)

    def finish(self) -> str:
        """Waits for the disk, closes the file and returns the SHA-256 as hexadecimal digits."""
        os.fsync(self.fileno())
        self.close()
        return self._hash.hexdigest()


class AppendOnly:
    """A file that only grows, a record at a time; `size` counts the bytes of whole records."""

    def __init__(self, path: Path, size: int) -> None:
        """Opens or creates `path` and cuts it to its first `size` bytes."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.ftruncate(self._descriptor, size)
        self.size = size

    def append(self, record: bytes) -> None:
        """Writes a whole record. Raises OSError where the system does; the next record then takes its place."""
        written = 0
        while written < len(record):
            written += os.pwrite(self._descriptor, record[written:], self.size + written)
        self.size += len(record)

    def sync(self) -> None:
        """Waits until all records are on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file, cutting off what is left of a record that could not be written whole."""
        if self._descriptor >= 0:
            try:
                os.ftruncate(self._descriptor, self.size)
            finally:
                os.close(self._descriptor)
                self._descriptor = -1


class Lock:
    """Exclusive use of a run's folder by one process; the system drops it with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError, naming the other process, where the folder is in use."""
        self._descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise InputError(
                f"The run {folder} is in use by process {owner}; wait for it or end it, or train into another folder."
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Gives the folder free."""
        os.close(self._descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Puts a file in place whole: the old content or the new one is there, at any moment."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with HashedFile(temporary) as file:
        file.write(content)
        file.finish()
    os.replace(temporary, path)
    sync_folder(path.parent)


def point(link: Path, target: str) -> None:
    """Makes the symbolic link point at `target`, with no moment in which it is missing."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.replace(temporary, link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content as hexadecimal digits. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
