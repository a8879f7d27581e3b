"""A thread that ends the process when a wait for other ranks takes too long.

The main thread waits inside MLX and receives no Python exception there, so ending the process is the only way out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOST = 3
"""Exit code of a process whose job lost a rank."""


class Watchdog:
    """Limits the duration of `with` blocks, one at a time."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._deadline: float | None = None
        self._message: Callable[[], str] = str
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, limit: float, message: Callable[[], str]) -> Iterator[None]:
        """Prints `message()` and exits with code LOST if the block takes more than `limit` seconds."""
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
                    # sys.exit would end this thread only, and cleanup at exit could wait for the main thread, which is
                    # blocked inside MLX. os.write needs no lock of a stream, which that thread could hold.
                    os.write(2, f"error: {self._message()}\n".encode())
                    os._exit(LOST)
                self._condition.wait(left)
