"""Collective operations of a job of several processes, checked and with a time limit.

A World is the processes (ranks 0, 1, ...) that `mlx.launch` or `mpirun` started together, joined by MLX's own
distributed layer (ring, MPI, NCCL or JACCL). A process that was started alone is a World of one, whose operations
return their arguments, so callers have one code path. Notable:

* All ranks call the same operations in the same order. Each is evaluated at once, on the stream that its back end
  prefers. Data is sent as bytes, or as integer sums: exact, in any order, also on devices without float64.
* After the loss of a peer, MLX raises an error or waits without a limit, depending on the back end. So every operation
  has a time limit; when it is exceeded, the process ends with a message and exit code 3.
* `sent` counts payload by the ring algorithm: in a gather of b bytes a rank, each rank sends (n - 1) b; in a sum of
  s bytes, 2 s (n - 1) / n.
"""

from __future__ import annotations

import json
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from nanoegg_mlx.errors import InputError, JobError, ReportedElsewhere
from nanoegg_mlx.ranks.watchdog import Watchdog

T = TypeVar("T")

TIMEOUT = 60.0
"""Default of the seconds beyond the expected ones that a rank waits for the others."""
_CRC = 4
"""Bytes of the checksum at the end of a gathered message: a failing ring has delivered damaged data."""
_INLINE = 1024
"""Bytes of a text or a broadcast that are sent with its size, so that short ones need one message only."""
_PIECE = 64 << 20
"""Bytes that are broadcast or summed at a time."""


class World:
    """The processes of a job, and this one's rank among them."""

    def __init__(self, group: mx.distributed.Group | None = None, timeout: float = TIMEOUT) -> None:
        """Args: group, of all processes, or None for a single process; timeout, in seconds (`_watched`)."""
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
        """Whether this is rank 0, the only one that reads and writes the run's folder."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> range:
        """The consecutive part of range(count) that belongs to this rank (or `rank`); sizes differ by one at most."""
        rank = self.rank if rank is None else rank
        each, more = divmod(count, self.size)
        first = rank * each + min(rank, more)
        return range(first, first + each + (rank < more))

    def gather(self, mine: np.ndarray, what: str, expected: float = 0.0) -> np.ndarray:
        """Every rank's bytes.

        Args:
            mine: (n,) uint8, n the same on all ranks.
            what: name of the data, for error messages.
            expected: seconds that the slowest rank may need until it calls this.

        Returns:
            (size, n) uint8.

        Raises:
            JobError: the connection to another rank is lost.
        """
        if self._group is None:
            return mine[None]
        message = np.concatenate([mine, np.array([_crc(mine)], np.uint32).view(np.uint8)])
        with self._watched(what, expected):
            rows = mx.distributed.all_gather(mx.array(message), group=self._group)
            mx.eval(rows)  # np.array also evaluates it, but there MLX (0.32) does not raise a ring's error
        self.sent += (self.size - 1) * message.nbytes
        gathered = np.array(rows).reshape(self.size, -1)
        for rank, row in enumerate(gathered):
            self._check(_crc(row[:-_CRC]) == int(row[-_CRC:].view(np.uint32)[0]), what, rank)
        return gathered[:, :-_CRC]

    def gather_shares(self, mine: np.ndarray, count: int, what: str, expected: float = 0.0) -> np.ndarray:
        """Concatenates the arrays that the ranks have for their shares of `count` items.

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

    def broadcast_bytes(self, content: np.ndarray | None, what: str, expected: float = 0.0) -> np.ndarray:
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
        # MLX has no broadcast: this is a sum to which the other ranks add zeros.
        for first in range(0, size, _PIECE):
            part = slice(first, first + _PIECE)
            whole[part] = np.array(self.sum(mx.array(whole[part]), what))
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

    def run_on_all(self, compute: Callable[[], T], what: str, expected: float = 0.0) -> T:
        """The result of `compute` on this rank, after it succeeded on all ranks.

        Raises:
            InputError: on a rank where `compute` raised it (or OSError), naming the rank; ReportedElsewhere on the
                other ranks, and on ranks whose message a lower rank has too.
        """
        if self._group is None:
            return compute()
        # A rank that failed still gathers: if it raised at once, the others would wait for it until the time limit.
        result, problem, mine = None, "", None
        try:
            result = compute()
        except (InputError, OSError) as error:
            problem, mine = str(error) or type(error).__name__, error
        problems = self.gather_texts(problem, what, expected)
        if not any(problems):
            return result  # type: ignore[return-value]
        if mine is None or problem in problems[: self.rank]:
            raise ReportedElsewhere("Another rank cannot continue.") from mine
        everywhere = problems.count(problem) == self.size
        raise InputError(problem if everywhere else f"Rank {self.rank}: {problem}") from mine

    def run_on_root(self, compute: Callable[[], T], what: str, expected: float = 0.0) -> T | None:
        """Calls `compute` on rank 0 only. Returns its result there, and None on the other ranks after it is done.

        Raises:
            On rank 0 the exceptions of `compute`; on the others ReportedElsewhere if that is an InputError or OSError.
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
            raise ReportedElsewhere("Rank 0 cannot continue.")
        return result

    def broadcast(self, value: Any, what: str) -> Any:
        """Rank 0's value, on every rank; JSON types. Raises as `gather` does."""
        if self._group is None:
            return value
        content = np.frombuffer(json.dumps(value).encode(), np.uint8) if self.is_root else None
        return json.loads(self.broadcast_bytes(content, what).tobytes())

    def check_same(self, mine: Mapping[str, Any], what: str) -> None:
        """Checks that all ranks have the same values.

        Args:
            mine: JSON types by name.
            what: name of the data, for error messages.

        Raises:
            InputError: on rank 0, with a rank that differs, the names and both values; ReportedElsewhere on the
                others.
        """
        if self._group is None:
            return
        texts = self.gather_texts(json.dumps(mine), what)
        first = json.loads(texts[0])
        for rank, text in enumerate(texts):
            other = json.loads(text)
            different = [name for name in sorted({*first, *other}) if other.get(name) != first.get(name)]
            if different and not self.is_root:
                raise ReportedElsewhere(f"Rank {rank} differs.")
            if different:
                which = ", ".join(f"{name} is {other.get(name)!r} (rank 0: {first.get(name)!r})" for name in different)
                raise InputError(
                    f"Rank {rank} differs from rank 0 in {what}: {which}; it must be the same on all ranks."
                )

    def check_same_digest(self, digest: Callable[[], bytes], what: str) -> None:
        """Checks that all ranks have computed the same.

        Args:
            digest: computes the digest, of one length on all ranks.
            what: name of the data and its epoch, for error messages.

        Raises:
            JobError: on every rank, naming the ranks that differ from the majority.
        """
        if self._group is None:
            return
        digests = [bytes(row) for row in self.gather(np.frombuffer(digest(), np.uint8), what)]
        if len(set(digests)) == 1:
            return
        most = max(digests, key=digests.count)  # on a tie, that of the lowest rank
        other = [rank for rank, digest in enumerate(digests) if digest != most]
        raise JobError(
            f"The ranks have diverged: {_ranks(other)} of {self.size} differ{'s' * (len(other) == 1)} from the others "
            f"in {what}. The newest checkpoint is valid; check the memory and the versions there, then resume the run."
        )

    def threads(self, wanted: int) -> int:
        """Threads for this rank: `wanted`, or for 0 an equal part of the cores that the ranks of one host share."""
        return wanted or self._threads

    def _part_of_cores(self) -> int:
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
        place = json.dumps([socket.gethostname(), usable])
        return max(len(usable) // self.gather_texts(place, "the names of the ranks' hosts").count(place), 1)

    def _check(self, whole: bool, what: str, rank: int) -> None:
        if not whole:
            raise JobError(
                f"Rank {self.rank} of {self.size} received damaged data from rank {rank} ({what}). The newest "
                "checkpoint is valid; `nanoegg train --resume` continues from it, with any number of ranks."
            )

    @contextmanager
    def _watched(self, what: str, expected: float) -> Iterator[None]:
        """Ends the process if the block takes `timeout` seconds more than twice its expected duration.

        The expected duration is `expected`, or the longest that an operation of this kind has taken so far.
        """
        kind = what.rstrip("0123456789")  # without the epoch's number
        limit = self.timeout + 2 * max(expected, self._longest.get(kind, 0.0))

        def message() -> str:
            others = _ranks([rank for rank in range(self.size) if rank != self.rank])
            return (
                f"rank {self.rank} of {self.size} has waited {limit:.0f} s for {what} from {others}. A rank without "
                "this message hangs or cannot be reached. The newest checkpoint is valid."
            )

        started = time.perf_counter()
        try:
            with self._watchdog.watch(limit, message):
                yield
        except RuntimeError as error:
            raise JobError(
                f"Rank {self.rank} of {self.size} waited for {what}, but the connection to another rank is lost "
                f"({error}). The newest checkpoint is valid; `nanoegg train --resume` continues from it, with any "
                "number of ranks."
            ) from error
        self._longest[kind] = max(self._longest.get(kind, 0.0), time.perf_counter() - started)


def _ranks(ranks: list[int]) -> str:
    """'rank 3' or 'ranks 0, 1, 3'; long lists are shortened."""
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def _crc(content: np.ndarray) -> int:
    """The CRC-32 of uint8 values."""
    return zlib.crc32(np.ascontiguousarray(content).data)
