"""The fitness log, votes.bin: a run in kilobytes. All noise is a function of the seed, so an epoch's update follows
from its fitness alone (with `sparse_embedding` from the epoch's text too, which is not here).

    file    b"eggvotes", then frames
    frame   kind (1 byte), size of the payload (4 bytes), payload, CRC-32 of all that (4 bytes); little-endian
    kind C  payload: the number of the next epoch (4 bytes) and the config, as TOML text, of that epoch and the
            following ones. The first frame is of this kind.
    kind E  payload: the epoch's number (4 bytes), then its fitness: with `fast_fitness` five pairs a byte in base 3
            (fitness + 1, first pair lowest), else one signed byte a pair; with nudged activations nothing

An epoch of population 1024 takes 116 bytes. The file only grows. A crash can leave an incomplete frame at its end:
readers stop before it, a resumed run truncates it.
"""

from __future__ import annotations

import mmap
import struct
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store.durable import AppendOnly

MAGIC = b"eggvotes"
_HEAD = struct.Struct("<cI")
_WORD = struct.Struct("<I")
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


@dataclass(frozen=True)
class LoggedEpoch:
    """One epoch of a run."""

    epoch: int
    """Number of the epoch, from 0."""
    config: Config
    """The config of this epoch."""
    fitness: np.ndarray
    """(N/2,) int8, each pair's; (0,) with perturb = "activations"."""


def pack_fitness(fitness: np.ndarray, fast: bool) -> bytes:
    """(P,) int8 as bytes: ceil(P / 5) of them for fitness in {-1, 0, 1} (`fast`), else P."""
    if not fast:
        return fitness.astype(np.int8).tobytes()
    digits = np.full(-(-len(fitness) // 5) * 5, 1, np.uint8)
    digits[: len(fitness)] = fitness + 1
    return (digits.reshape(-1, 5) * _POWERS).sum(axis=1, dtype=np.uint8).tobytes()


def unpack_fitness(packed: bytes, pairs: int, fast: bool) -> np.ndarray:
    """The inverse of `pack_fitness`: (pairs,) int8. Raises ValueError for bytes that it cannot have returned."""
    values = np.frombuffer(packed, np.uint8)
    if not fast:
        if len(values) != pairs:
            raise ValueError(f"{len(values)} bytes for {pairs} pairs")
        return values.view(np.int8)
    if len(values) != -(-pairs // 5) or (values >= 243).any():
        raise ValueError(f"{len(values)} bytes for {pairs} ternary pairs")
    return ((values[:, None] // _POWERS % 3).reshape(-1)[:pairs].astype(np.int8)) - 1


def frame(kind: bytes, payload: bytes) -> bytes:
    """A frame of kind b"C" or b"E"."""
    content = _HEAD.pack(kind, len(payload)) + payload
    return content + _WORD.pack(zlib.crc32(content))


def config_frame(config: Config, epoch: int) -> bytes:
    """The frame with the config of `epoch` (from 0) and the following ones."""
    return frame(b"C", _WORD.pack(epoch) + config.to_toml().encode())


def epoch_frame(config: Config, epoch: int, fitness: np.ndarray) -> bytes:
    """The frame of an epoch; fitness is (N/2,) int8."""
    return frame(b"E", _WORD.pack(epoch) + pack_fitness(fitness, config.fast_fitness))


def read_fitness_log(path: Path) -> Iterator[LoggedEpoch]:
    """The epochs of a fitness log, in order.

    Stops without an error at the first frame that is incomplete or fails its checksum.

    Raises:
        InputError: no such file, not a fitness log, or frames that do not follow each other.
    """
    for epoch, config, payload, _ in _frames(path):
        if payload is not None:
            pairs = config.pairs if config.perturb == "weights" else 0
            try:
                fitness = unpack_fitness(payload[_WORD.size :], pairs, config.fast_fitness)
            except ValueError as error:
                raise InputError(f"{path} is damaged: epoch {epoch} has {error}.") from error
            yield LoggedEpoch(epoch, config, fitness)


def start_fitness_log(path: Path, config: Config, epoch: int = 0) -> AppendOnly:
    """A new fitness log whose first epoch will be `epoch`; it replaces the content of an existing file."""
    file = AppendOnly(path, 0)
    file.append(MAGIC + config_frame(config, epoch))
    return file


def size_before(path: Path, epoch: int) -> int | None:
    """The size of the file before the frame of `epoch` (0, 1, ...), or None if the log ends before that epoch.

    Raises InputError as `read_fitness_log` does.
    """
    following, whole = -1, None
    for number, _, payload, (start, end) in _frames(path):
        if payload is not None and number == epoch:
            return start
        following, whole = number + (payload is not None), end
    return whole if following == epoch else None


def _frames(path: Path) -> Iterator[tuple[int, Config, bytes | None, tuple[int, int]]]:
    """Each whole frame: its epoch, the config in force, payload (of kind E, else None), start and end."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"The fitness log {path} cannot be read: {error.strerror}.") from error
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{path} is not a fitness log; it must start with {MAGIC.decode()!r}.")
        config: Config | None = None
        following: int | None = None
        start = len(MAGIC)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            while (end := _end_of_frame(content, start)) is not None:
                payload = content[start + _HEAD.size : end - _WORD.size]
                if len(payload) < _WORD.size:
                    raise InputError(f"{path} is damaged: a frame has {len(payload)} bytes; it must have its epoch.")
                epoch = _WORD.unpack_from(payload)[0]
                if following not in (None, epoch):
                    raise InputError(f"{path} is damaged: an epoch is {epoch}; it must be {following}.")
                if content[start : start + 1] == b"C":
                    try:
                        document = tomllib.loads(payload[_WORD.size :].decode())
                    except (ValueError, RecursionError) as error:
                        raise InputError(f"{path} is damaged: the config of epoch {epoch} is not TOML.") from error
                    config = Config.from_document(document, str(path))
                    yield epoch, config, None, (start, end)
                    following = epoch
                elif config is None:
                    raise InputError(f"{path} is damaged; it must begin with a config.")
                else:
                    yield epoch, config, payload, (start, end)
                    following = epoch + 1
                start = end


def _end_of_frame(content: mmap.mmap, start: int) -> int | None:
    """The end of the frame that begins at `start`, or None if it is incomplete or fails its checksum."""
    if start + _HEAD.size > len(content):
        return None
    kind, size = _HEAD.unpack_from(content, start)
    end = start + _HEAD.size + size
    if kind not in (b"C", b"E") or end + _WORD.size > len(content):
        return None
    if zlib.crc32(content[start:end]) != _WORD.unpack_from(content, end)[0]:
        return None
    return end + _WORD.size
