"""Compressed files on disk: `-` for the standard streams, and no file lost or overwritten, whatever happens.

The output is written under a temporary name in its folder, flushed and renamed, with the permissions and the time of
the input. What goes to standard output is written when all of it is right.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure import container
from nanoegg_mlx.measure.compress import Progress, compress_stream, decompress_stream
from nanoegg_mlx.store.durable import name_new, sync_folder

STREAM = "-"
SUFFIX = ".egg"
_SPOOLED = 1 << 24
"""Bytes for standard output that are kept in memory; more are in a temporary file."""


@dataclass(frozen=True)
class Done:
    """A finished file."""

    source: str
    text: int
    """Bytes of the text."""
    compressed: int
    """Bytes of the compressed file."""
    seconds: float


def compress_file(
    source: str,
    target: str,
    params: Params,
    config: Config,
    *,
    lanes: int = 0,
    verify: bool = False,
    remove: bool = False,
    force: bool = False,
    progress: Progress = lambda size: None,
) -> Done:
    """Compresses a file.

    Args:
        source, target: paths, or `-`.
        params, config, lanes: as for `compress`.
        verify: decode the result, and compare it with what was read by its size and SHA-256, before it gets its name.
        remove: delete the source at the end; implies `verify`.
        force: overwrite the target, and write to a terminal.
        progress: called with bytes of text; with `verify` it gets all of them twice.

    Raises:
        InputError: see `compress`; the source is no readable file, or the target exists.
    """
    started = time.perf_counter()
    verify = verify or remove
    if target == STREAM and sys.stdout.isatty() and not force:
        raise InputError("Standard output is a terminal; it must be a file or a pipe (-f overrides this).")
    with _opened(source) as (file, status), _created(target, status, force, direct=not verify) as output:
        read, written = _Counted(file), _Counted(output)
        compress_stream(cast(BinaryIO, read), cast(BinaryIO, written), params, config, lanes, progress)
        if verify:
            output.seek(0)
            decompress_stream(output, cast(BinaryIO, _Nowhere()), params, config, "The result", progress)
    if remove:
        _remove(source, status)
    return Done(_name(source), read.size, written.size, time.perf_counter() - started)


def decompress_file(
    source: str,
    target: str,
    params: Params,
    config: Config,
    *,
    remove: bool = False,
    force: bool = False,
    progress: Progress = lambda size: None,
) -> Done:
    """Decompresses a file. Arguments and errors as in `compress_file`, and those of `decompress`."""
    started = time.perf_counter()
    with _opened(source) as (file, status), _created(target, status, force) as output:
        read, written = _Counted(file), _Counted(output)
        name = _name(source)
        decompress_stream(cast(BinaryIO, read), cast(BinaryIO, written), params, config, name, progress)
    if remove:
        _remove(source, status)
    return Done(name, written.size, read.size, time.perf_counter() - started)


def text_size(path: str, compressed: bool) -> int | None:
    """The size of a file, or of the text that a compressed file claims to have, for a progress bar; None if unknown."""
    try:
        if path == STREAM or not os.path.isfile(path):
            return None
        if not compressed:
            return os.path.getsize(path)
        with open(path, "rb") as file:
            file.seek(-container.END.size, os.SEEK_END)
            return int(container.END.unpack(file.read())[1])
    except OSError:
        return None


class _Counted:
    """A binary file that counts the bytes read or written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self.size += len(content)
        return content

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.size += len(content)


class _Nowhere(io.RawIOBase):
    """Accepts everything."""

    def write(self, content: object) -> None:
        pass


def _name(path: str) -> str:
    return "Standard input" if path == STREAM else path


@contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, os.stat_result | None]]:
    """The file for reading, and its status."""
    if path == STREAM:
        if sys.stdin is None:
            raise InputError("Standard input is closed; it must be open to be read.")
        yield sys.stdin.buffer, None
        return
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; it must be a file.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); it must be a readable file.") from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no regular file; it must be one, or `-` for standard input.")
        yield file, status


@contextmanager
def _created(path: str, like: os.stat_result | None, force: bool, direct: bool = False) -> Iterator[BinaryIO]:
    """A new file, which gets its name at the end of the `with` block; after an exception nothing of it is left.

    `direct`: write to standard output at once.
    """
    if path == STREAM:
        if direct:
            yield sys.stdout.buffer
        else:
            with tempfile.SpooledTemporaryFile(_SPOOLED) as spool:
                yield cast(BinaryIO, spool)
                spool.seek(0)
                shutil.copyfileobj(spool, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    _check_target(path, like, force)
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, f".nanoegg-{secrets.token_hex(8)}.tmp")
    # Readable for its owner only until it has the permissions of its input.
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if like else 0o666)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); its folder must be writable.") from error
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            if like:
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode) & 0o777)
                os.utime(descriptor, ns=(like.st_atime_ns, like.st_mtime_ns))
            os.fsync(descriptor)
        _rename(temporary, path, force)
        sync_folder(Path(folder))
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _check_target(path: str, like: os.stat_result | None, force: bool) -> None:
    """Raises InputError where the target exists and must stay."""
    if not os.path.lexists(path):
        return
    if like and os.path.exists(path) and os.path.samestat(like, os.stat(path)):
        raise InputError(f"{path} is the input itself; the output must be another file.")
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise InputError(f"{path} exists and is no regular file; the output must be a new file.")
    if not force:
        raise InputError(f"{path} exists; the output must be a new file (-f overwrites it).")


def _rename(temporary: str, path: str, force: bool) -> None:
    """Gives the file its name, which must not exist without `force`."""
    if force:
        os.replace(temporary, path)
        return
    try:
        name_new(Path(temporary), Path(path))
    except FileExistsError as error:
        raise InputError(f"{path} exists; the output must be a new file (-f overwrites it).") from error


def _remove(path: str, before: os.stat_result | None) -> None:
    """Deletes the input, if it is still the file that was read."""
    now = os.stat(path)
    same = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    if before is None or any(getattr(now, name) != getattr(before, name) for name in same):
        raise InputError(f"{path} was not deleted: it changed while it was read, and it must stay the same.")
    os.unlink(path)
