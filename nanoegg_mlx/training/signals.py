"""Signals as requests: Ctrl-C and SIGTERM end a run between two epochs, with nothing lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Stop:
    """What SIGINT (Ctrl-C) and SIGTERM do inside the `with` block: the first asks for an end, a second ends at once.

    In a job of several processes the end is that of the epoch whose flags have told all ranks of the signal.
    """

    def __init__(self, together: bool = False) -> None:
        self.came: signal.Signals | None = None
        """The first signal that came to this process."""
        self.signal: signal.Signals | None = None
        """The signal that ends the run."""
        self._together = together
        self._abandoning = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            self._handlers = {number: signal.signal(number, self._came) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def heard(self, flags: Sequence[int]) -> None:
        """Takes in what signal each rank of the job had got, or 0: the first one ends the run on all of them."""
        if self._together and any(flags):
            self.signal = signal.Signals(next(flag for flag in flags if flag))

    def attempt(self, compute: Callable[[], T]) -> T | None:
        """What `compute` returns, or None where a signal came before it was done; it must not change anything.

        In a job it is always done: the others count on this rank.
        """
        try:
            self._abandoning = not self._together
            computed = compute()
            self._abandoning = False
            return computed
        except _Abandoned:
            return None
        finally:
            self._abandoning = False

    def _came(self, number: int, frame: object) -> None:
        self.came = signal.Signals(number)
        if not self._together:
            self.signal = self.came
        for other in self._handlers:
            signal.signal(other, signal.SIG_DFL)
        if self._abandoning:
            raise _Abandoned


class _Abandoned(BaseException):
    """Leaves a computation that a signal has made pointless."""
