"""Bytes of input files: plain, gzip or zstd, in pieces of bounded size.

Notable: a compressed file must be whole. Each gzip member and zstd frame is checked to its end; an empty file is none.
A file may have lost whole members at its end, which no reader can detect; several members are therefore remarked on.
A pipe can be read only once and has no size, so it is copied to a temporary file first.
"""

import hashlib
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.tokens import CHUNK_BYTES
from nanoegg_mlx.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}
CODECS = {".gz": "gzip", ".zst": "zstd"}
KNOWN = ".txt, .md and .jsonl (these also as .gz or .zst), .parquet, .arrow"

MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_READ_BYTES = 1 << 18
_WINDOW_LOG = zstd.DecompressionParameter.window_log_max

Remark = Callable[[str], object]


def ignore(_: str) -> None:
    """A Remark that drops the sentence."""


def kind_of(path: Path) -> str | None:
    """Returns 'text', 'jsonl', 'parquet' or 'arrow' by the file's name, None for any other name."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in CODECS:
        kind = KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind in ("text", "jsonl") else None
    return KINDS.get(suffixes[-1]) if suffixes else None


@dataclass(frozen=True)
class Input:
    """A file to read.

    name: subject of messages. kind: as kind_of. codec: 'gzip', 'zstd' or None. keep: an object that must live as long
    as the path is used. remark: receives sentences for the user.
    """

    path: Path
    name: str
    kind: str
    codec: str | None
    keep: Any = None
    remark: Remark = ignore

    @classmethod
    def of(cls, path: "Path | Input", name: str | None = None) -> "Input":
        """Returns the input that a path's suffixes describe (an unknown kind counts as Arrow)."""
        if isinstance(path, Input):
            return path
        return cls(path, name or f"The file {path}", kind_of(path) or "arrow", CODECS.get(path.suffix.lower()))


def is_pipe(path: Path) -> bool:
    """Returns whether the path is a pipe, or a descriptor of this process (process substitution, /dev/stdin)."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    descriptor = str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")) and stat.S_ISREG(mode)
    return stat.S_ISFIFO(mode) or descriptor


def spool(path: Path) -> tuple[Input, str]:
    """Copies a pipe to a temporary file without a name. Returns it and the SHA-256 of its bytes.

    A pipe whose name has no known suffix is of the kind that its first bytes show.
    Raises InputError when the pipe cannot be read or the temporary folder has no room.
    """
    name = f"The file {path}"
    try:
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        with open(path, "rb") as pipe:
            shutil.copyfileobj(pipe, copy, CHUNK_BYTES)
        copy.seek(0)
        digest = hashlib.file_digest(copy, "sha256").hexdigest()
        copy.seek(0)
    except OSError as error:
        raise InputError(
            f"{name} cannot be copied to {tempfile.gettempdir()} ({error.strerror or error}); it must be a readable "
            "pipe, and the temporary folder (TMPDIR) must have room for its text."
        ) from None
    kind, codec = kind_of(path), CODECS.get(path.suffix.lower())
    copied = Path(f"/dev/fd/{copy.fileno()}")
    if kind is None:
        kind, codec = _kind_by_content(copied, name)
    return Input(copied, name, kind, codec, copy), digest


def _kind_by_content(path: Path, name: str) -> tuple[str, str | None]:
    with open(path, "rb") as file:
        head = file.read(8)
    codec = next((codec for magic, codec in MAGIC.items() if head.startswith(magic)), None)
    if codec is None and head.startswith(b"PAR1"):
        return "parquet", None
    # An Arrow stream begins with a continuation marker.
    if codec is None and (head.startswith(b"ARROW1") or (head.startswith(b"\xff\xff\xff\xff") and len(head) == 8)):
        return "arrow", None
    first = next(pieces(Input(path, name, "text", codec)), b"").removeprefix(b"\xef\xbb\xbf").lstrip()
    return ("jsonl" if first.startswith(b"{") else "text"), codec


def pieces(source: Input, size: int | None = None) -> Iterator[bytes]:
    """Yields the file's decompressed bytes in pieces of at most `size` (default: CHUNK_BYTES).

    Raises InputError for a compressed file that is empty, damaged or cut, OSError as the system does.
    """
    size = size or CHUNK_BYTES
    with open(source.path, "rb") as file:
        if source.codec is None:
            while piece := file.read(size):
                yield piece
            return
        must = f"it must be a whole {source.codec} file"
        try:
            yield from _decompressed(file, source, size)
        except EOFError:
            raise InputError(f"{source.name} cannot be read (it is cut off); {must}.") from None
        except (zlib.error, zstd.ZstdError) as error:
            reason = str(error).strip().rstrip(".")
            raise InputError(f"{source.name} cannot be read ({reason}); {must}.") from None


def _decompressed(file: BinaryIO, source: Input, size: int) -> Iterator[bytes]:
    """Yields the contents of all members. Raises EOFError, zlib.error or zstd.ZstdError for a damaged file."""
    data = file.read(_READ_BYTES)
    if not data:
        raise InputError(f"{source.name} is empty (0 bytes); it must be a whole {source.codec} file or be left out.")
    blocked = source.codec == "gzip" and data[:4] == b"\x1f\x8b\x08\x04" and data[12:14] == b"BC"
    members, last = 0, 0
    while data:
        decoder: Any = _Gzip() if source.codec == "gzip" else zstd.ZstdDecompressor(options={_WINDOW_LOG: _window()})
        last = 0
        while not decoder.eof:
            if decoder.needs_input and not data and not (data := file.read(_READ_BYTES)):
                raise EOFError
            piece = decoder.decompress(data, size)
            data = b""
            last += len(piece)
            if piece:
                yield piece
        members += 1
        data = decoder.unused_data or file.read(_READ_BYTES)
        if source.codec == "gzip":
            # Tapes and block devices pad files with zeros.
            while data and not (data := data.lstrip(b"\0")):
                data = file.read(_READ_BYTES)
    if blocked and last:
        # A BGZF file ends with an empty member.
        raise EOFError
    if members > 1 and not blocked:
        what = "gzip members" if source.codec == "gzip" else "zstd frames"
        source.remark(f"{source.name} has {members} {what}; whether more were cut off at its end cannot be detected.")


def _window() -> int:
    return _WINDOW_LOG.bounds()[1]


class _Gzip:
    """One gzip member, with the interface of ZstdDecompressor."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)
        self._tail = b""
        self._full = False

    eof = property(lambda self: self._decoder.eof)
    unused_data = property(lambda self: self._decoder.unused_data)

    @property
    def needs_input(self) -> bool:
        return not (self._tail or self._full)

    def decompress(self, data: bytes, size: int) -> bytes:
        piece = self._decoder.decompress(self._tail + data, size)
        self._tail = self._decoder.unconsumed_tail
        self._full = len(piece) == size
        return piece


def file_size(path: Path) -> int:
    """Returns the size of a regular file in bytes."""
    return os.stat(path).st_size
