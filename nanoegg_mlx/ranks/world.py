"""A job of several processes: who does what, and the few things that they tell each other.

A World is the processes (ranks 0, 1, ...) that `mlx.launch` or `mpirun` started together, joined by MLX's own
distributed layer (ring, MPI, NCCL or JACCL). A process that was started alone is a World of one, whose operations
return what they are given, so callers have one code path. What is notable:

* All ranks call the same operations in the same order; each is evaluated at once, on the stream that its back end
  prefers. Everything travels as bytes, or as integer sums: exact, in any order, on devices without float64 too.
* A lost peer is an error that MLX raises or a wait without end, depending on the back end. So every operation is
  watched: one that takes much longer than expected ends the process with a message and exit code 3.
* `sent` counts payload by the ring algorithm: a gather of b bytes a rank makes each rank send (n - 1) b, a sum of
  s bytes 2 s (n - 1) / n.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from nanoegg_mlx.errors import InputError, JobError, ToldElsewhere

T = TypeVar("T")

LOST = 3
"""Exit code of a process whose job lost a rank."""
TIMEOUT = 60.0
"""Seconds beyond the expected ones that a rank waits for the others, unless the config says otherwise."""
_CRC = 4
"""Bytes that a gathered message ends with, a checksum of the rest: a dying ring has been seen to deliver garbage."""
_INLINE = 1024
"""Bytes of a text or a broadcast that travel with its size, to save short ones a second message."""
_PIECE = 64 << 20
"""Bytes that are broadcast or summed at a time."""


class World:
    """The processes of a job as one of them sees it."""

    def __init__(self, group: mx.distributed.Group | None = None, timeout: float = TIMEOUT) -> None:
        """Args: group, of all processes, or None for one on its own; timeout, in seconds (`_watched`)."""
        self._group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()
        self.timeout = timeout
        self.sent = 0
        """Bytes of payload that this rank has sent."""
        self._longest: dict[str, float] = {}
        self._watchdog = Watchdog()
        self._threads = 0 if group is None else self._part_of_cores()

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which alone reads and writes the run's folder."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> range:
        """The consecutive ones of `count` things that are this rank's (or `rank`'s); shares differ by one at most."""
        rank = self.rank if rank is None else rank
        each, more = divmod(count, self.size)
        first = rank * each + min(rank, more)
        return range(first, first + each + (rank < more))

    # Operations: every rank calls them.

    def gather(self, mine: np.ndarray, what: str, expected: float = 0.0) -> np.ndarray:
        """Every rank's bytes.

        Args:
            mine: (n,) uint8, n the same on all ranks.
            what: is waited for, in an error's words.
            expected: seconds that it may well take.

        Returns:
            (size, n) uint8.

        Raises:
            JobError: the connection to another rank is gone.
        """
        if self._group is None:
            return mine[None]
        message = np.concatenate([mine, np.array([_crc(mine)], np.uint32).view(np.uint8)])
        with self._watched(what, expected):
            rows = mx.distributed.all_gather(mx.array(message), group=self._group)
            mx.eval(rows)  # np.array would evaluate it too, but MLX (0.32) does not raise a ring's error there
        self.sent += (self.size - 1) * message.nbytes
        gathered = np.array(rows).reshape(self.size, -1)
        for rank, row in enumerate(gathered):
            self._check(_crc(row[:-_CRC]) == int(row[-_CRC:].view(np.uint32)[0]), what, rank)
        return gathered[:, :-_CRC]

    def gather_shares(self, mine: np.ndarray, count: int, what: str, expected: float = 0.0) -> np.ndarray:
        """Puts together what all ranks have for their shares of `count` things.

        Args:
            mine: (len(share(count)), ...), of any dtype and the same trailing shape on all ranks.
            what, expected: as in `gather`, and raising the same.

        Returns:
            (count, ...) of the same dtype.
        """
        if self._group is None:
            return mine
        item = mine.dtype.itemsize * int(np.prod(mine.shape[1:]))
        padded = np.zeros(len(self.share(count, 0)) * item, np.uint8)
        padded[: mine.nbytes] = np.ascontiguousarray(mine).reshape(-1).view(np.uint8)
        rows = self.gather(padded, what, expected)
        whole = np.concatenate([rows[rank, : len(self.share(count, rank)) * item] for rank in range(self.size)])
        return whole.view(mine.dtype).reshape(count, *mine.shape[1:])

    def gather_texts(self, mine: str, what: str, expected: float = 0.0) -> list[str]:
        """Every rank's text, of any length. Raises as `gather` does."""
        content = np.frombuffer(mine.encode(), np.uint8)
        head = np.zeros(8 + _INLINE, np.uint8)
        head[:8] = np.array([len(content)], np.int64).view(np.uint8)
        head[8 : 8 + len(content)] = content[:_INLINE]
        heads = self.gather(head, what, expected)
        sizes = np.ascontiguousarray(heads[:, :8]).view(np.int64)[:, 0]
        rows = heads[:, 8:]
        if sizes.max() > _INLINE:
            padded = np.zeros(sizes.max(), np.uint8)
            padded[: len(content)] = content
            rows = self.gather(padded, what)
        return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]

    def broadcast(self, content: np.ndarray | None, what: str, expected: float = 0.0) -> np.ndarray:
        """Rank 0's bytes, on every rank.

        Args:
            content: (n,) uint8 on rank 0, anything on the others.
            what, expected: as in `gather`, and raising the same.

        Returns:
            (n,) uint8.
        """
        if self._group is None:
            assert content is not None
            return content
        mine = content if self.is_root and content is not None else np.zeros(0, np.uint8)
        head = np.zeros(16 + _INLINE, np.uint8)
        head[:16] = np.array([len(mine), _crc(mine)], np.int64).view(np.uint8)
        head[16 : 16 + len(mine)] = mine[:_INLINE]
        head = self.gather(head, what, expected)[0]
        size, checksum = np.ascontiguousarray(head[:16]).view(np.int64)
        if size <= _INLINE:
            return head[16 : 16 + size]
        whole = np.array(mine) if self.is_root else np.zeros(size, np.uint8)
        for first in range(0, size, _PIECE):
            part = slice(first, first + _PIECE)
            whole[part] = np.array(self.sum(mx.array(whole[part]), what))  # the others add zeros
        self._check(_crc(whole) == checksum, what, 0)
        return whole

    def sum(self, mine: mx.array, what: str, expected: float = 0.0) -> mx.array:
        """The sum of every rank's integers, (n,) of one dtype. Raises as `gather` does."""
        if self._group is None:
            return mine
        mx.eval(mine)
        pieces = []
        width = max(_PIECE // mine.itemsize, 1)
        for first in range(0, mine.size, width):
            with self._watched(what, expected):
                piece = mx.distributed.all_sum(mine[first : first + width], group=self._group)
                mx.eval(piece)
            pieces.append(piece)
        self.sent += 2 * (self.size - 1) * mine.nbytes // self.size
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)

    # What is made of them.

    def together(self, compute: Callable[[], T], what: str, expected: float = 0.0) -> T:
        """What `compute` returns, if no rank's raised an InputError or OSError.

        Raises:
            InputError: on a rank where `compute` did, naming the rank; ToldElsewhere on the others, and where a lower
                rank says the very same.
        """
        if self._group is None:
            return compute()
        result, problem, mine = None, "", None
        try:
            result = compute()
        except (InputError, OSError) as error:
            problem, mine = str(error) or type(error).__name__, error
        problems = self.gather_texts(problem, what, expected)
        if not any(problems):
            return result  # type: ignore[return-value]
        if mine is None or problem in problems[: self.rank]:
            raise ToldElsewhere("Another rank cannot go on.") from mine
        everywhere = problems.count(problem) == self.size
        raise InputError(problem if everywhere else f"Rank {self.rank}: {problem}") from mine

    def on_root(self, compute: Callable[[], T], what: str, expected: float = 0.0) -> T | None:
        """What `compute` returns on rank 0, where alone it is called, and None on the others once that is done.

        Raises:
            Whatever it raises on rank 0, and ToldElsewhere on the others where that is an InputError or OSError.
        """
        if self._group is None:
            return compute()
        result, problem = None, None
        if self.is_root:
            try:
                result = compute()
            except (InputError, OSError) as error:
                problem = error
        failed = self.gather(np.array([problem is not None], np.uint8), what, expected)[0, 0]
        if problem is not None:
            raise problem
        if failed:
            raise ToldElsewhere("Rank 0 cannot go on.")
        return result

    def tell(self, value: Any, what: str) -> Any:
        """Rank 0's value, on every rank; JSON types. Raises as `gather` does."""
        if self._group is None:
            return value
        content = np.frombuffer(json.dumps(value).encode(), np.uint8) if self.is_root else None
        return json.loads(self.broadcast(content, what).tobytes())

    def agree(self, mine: Mapping[str, Any], what: str) -> None:
        """Checks that all ranks have the same.

        Args:
            mine: JSON types by name, the same names on all ranks.
            what: they are, for an error's words.

        Raises:
            InputError: on rank 0, with a rank that differs, the names and both values; ToldElsewhere on the others.
        """
        if self._group is None:
            return
        texts = self.gather_texts(json.dumps(mine), what)
        first = json.loads(texts[0])
        for rank, text in enumerate(texts):
            other = json.loads(text)
            different = [name for name in first if other[name] != first[name]]
            if different and not self.is_root:
                raise ToldElsewhere(f"Rank {rank} differs.")
            if different:
                which = ", ".join(f"{name} = {other[name]!r} (rank 0: {first[name]!r})" for name in different)
                raise InputError(f"Rank {rank} differs from rank 0 in {what}: {which}; all ranks need the same.")

    def compare(self, digest: Callable[[], bytes], what: str) -> None:
        """Checks that all ranks have computed the same.

        Args:
            digest: gives that of what was computed, of one length on all ranks.
            what: it is and of when, for an error's words.

        Raises:
            JobError: on every rank, naming those that have something else than most ranks.
        """
        if self._group is None:
            return
        digests = [bytes(row) for row in self.gather(np.frombuffer(digest(), np.uint8), what)]
        if len(set(digests)) == 1:
            return
        most = max(digests, key=digests.count)  # of equally many: that of the lowest rank
        other = [rank for rank, digest in enumerate(digests) if digest != most]
        raise JobError(
            f"The ranks have diverged: {_ranks(other)} of {self.size} differ{'s' * (len(other) == 1)} from the others "
            f"in {what}. The newest checkpoint stands; look at the memory and the versions there, then resume the run."
        )

    def threads(self, wanted: int) -> int:
        """Threads for this rank: `wanted`, or if that is 0 an equal part of the cores that ranks of one host share."""
        return wanted or self._threads

    def _part_of_cores(self) -> int:
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
        place = json.dumps([socket.gethostname(), usable])
        return max(len(usable) // self.gather_texts(place, "the names of the ranks' hosts").count(place), 1)

    def _check(self, whole: bool, what: str, rank: int) -> None:
        if not whole:
            raise JobError(
                f"Rank {self.rank} of {self.size} waited for {what}, but got it damaged from rank {rank}. The newest "
                "checkpoint stands; `nanoegg train --resume` goes on, with any number of ranks."
            )

    @contextmanager
    def _watched(self, what: str, expected: float) -> Iterator[None]:
        """Ends the process where the block takes `timeout` seconds more than twice what may be expected of it.

        That is `expected`, or the longest that the like of it has taken so far.
        """
        kind = what.rstrip("0123456789")
        limit = self.timeout + 2 * max(expected, self._longest.get(kind, 0.0))

        def message() -> str:
            others = _ranks([rank for rank in range(self.size) if rank != self.rank])
            return (
                f"rank {self.rank} of {self.size} has waited {limit:.0f} s for {what} from {others}. One that does not "
                "say this hangs or cannot be reached. The newest checkpoint stands."
            )

        started = time.perf_counter()
        try:
            with self._watchdog.watch(limit, message):
                yield
        except RuntimeError as error:
            raise JobError(
                f"Rank {self.rank} of {self.size} waited for {what}, but the connection to another rank is gone "
                f"({error}). The newest checkpoint stands; `nanoegg train --resume` goes on, with any number of ranks."
            ) from error
        self._longest[kind] = max(self._longest.get(kind, 0.0), time.perf_counter() - started)


class Watchdog:
    """A thread that ends the process where something that is waited for does not come."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._deadline: float | None = None
        self._message: Callable[[], str] = str
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, limit: float, message: Callable[[], str]) -> Iterator[None]:
        """Prints what `message` returns and exits with code LOST where the block takes more than `limit` seconds."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        with self._condition:
            self._deadline, self._message = time.monotonic() + limit, message
            self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                self._deadline = None

    def _run(self) -> None:
        with self._condition:
            while True:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    # The main thread is inside MLX and hears no exception.
                    os.write(2, f"error: {self._message()}\n".encode())
                    os._exit(LOST)
                self._condition.wait(left)


def join(timeout: float = TIMEOUT) -> World:
    """The World that this process was started into: by its environment, which `mlx.launch` and `mpirun` set.

    Args:
        timeout: seconds to wait for the others.

    Raises:
        InputError: MLX cannot connect, or was built without the back end.
    """
    backend = launched_backend(os.environ)
    if backend is None:
        return World()
    rank = os.environ.get("MLX_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "?"
    try:
        group = wait_for_the_other_ranks_to_start(backend, timeout)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"Rank {rank} cannot join the others through MLX's {backend} back end: {error}.") from error
    return World(group if group.size() > 1 else None, timeout)


def wait_for_the_other_ranks_to_start(backend: str, timeout: float) -> mx.distributed.Group:
    """All processes of the job; exits with code 1 and a traceback that names this function if they do not come."""
    # MLX connects, and waits without end, with the interpreter's lock held: no thread of Python's could step in.
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        return mx.distributed.init(strict=True, backend=backend)
    finally:
        faulthandler.cancel_dump_traceback_later()


def launched_backend(environment: Mapping[str, str]) -> str | None:
    """The back end that a launcher's environment variables name, or None for a process on its own."""
    if "MLX_IBV_DEVICES" in environment and "MLX_JACCL_COORDINATOR" in environment:
        return "jaccl"
    if "NCCL_HOST_IP" in environment and int(environment.get("MLX_WORLD_SIZE") or 1) > 1:
        return "nccl"
    if "MLX_HOSTFILE" in environment and "MLX_RANK" in environment:
        try:
            # `mlx.launch -n 1` leaves the file empty, which MLX itself does not accept.
            return "ring" if Path(environment["MLX_HOSTFILE"]).read_text().strip() else None
        except OSError as error:
            raise InputError(f"The file that MLX_HOSTFILE names cannot be read: {error.strerror}.") from error
    if any(int(environment.get(name) or 1) > 1 for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
        return "mpi"
    return None


def _ranks(ranks: list[int]) -> str:
    """'rank 3' or 'ranks 0, 1, 3'; long lists are cut."""
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def _crc(content: np.ndarray) -> int:
    """The CRC-32 of uint8 values."""
    return zlib.crc32(np.ascontiguousarray(content).data)
