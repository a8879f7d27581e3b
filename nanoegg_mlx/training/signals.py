"""Signals as requests: Ctrl-C and SIGTERM end a run between two epochs, without loss."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class StopSignals:
    """Handles SIGINT (Ctrl-C) and SIGTERM in the `with` block: the first requests an end, a second ends at once.

    In a job of several processes the run ends with the epoch whose flags carried the signal to all ranks.
    """

    def __init__(self, shared: bool = False) -> None:
        """Args: shared, whether other ranks depend on this process."""
        self.received: signal.Signals | None = None
        """The first signal that this process received."""
        self.signal: signal.Signals | None = None
        """The signal that ends the run."""
        self._shared = shared
        self._abandoning = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # only the main thread can set handlers
            self._handlers = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def record(self, flags: Sequence[int]) -> None:
        """Records the signal, or 0, that each rank of the job received: the first one ends the run on all ranks."""
        if self._shared and any(flags):
            self.signal = signal.Signals(next(flag for flag in flags if flag))

    def attempt(self, compute: Callable[[], T]) -> T | None:
        """The result of `compute`, or None if a signal interrupted it; `compute` must not change anything.

        In a job it is never interrupted, since the other ranks wait for this one.
        """
        try:
            self._abandoning = not self._shared
            computed = compute()
            self._abandoning = False
            return computed
        except _Abandoned:
            return None
        finally:
            self._abandoning = False

    def _handle(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number)
        if not self._shared:
            self.signal = self.received
        # The system's default for the second signal ends the process even while it is inside MLX.
        for other in self._handlers:
            signal.signal(other, signal.SIG_DFL)
        if self._abandoning:
            raise _Abandoned


class _Abandoned(BaseException):
    """Leaves a computation after a signal. A BaseException, so that no `except Exception` stops it."""
