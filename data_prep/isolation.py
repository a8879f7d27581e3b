"""Runs work on untrusted files in a child process, whose death becomes a sentence.

Notable: Arrow's C++ code has faults that a damaged file can reach: failed assertions, segmentation faults, and requests
for more memory than there is. A forked child reads the files and writes the caches into the staging folder; no text
travels between the processes, so it costs only the fork, some milliseconds. The parent waits, and removes the staging
folder if the child dies. The child ends with its parent.
"""

import faulthandler
import fcntl
import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn, TypeVar

from nanoegg_mlx.errors import InputError

T = TypeVar("T")
Announce = Callable[[str], None]


def isolated(work: Callable[[Announce], T]) -> T:
    """Returns work(announce), computed in a child process.

    work: calls announce(name) before it reads an input; name is the subject of a message. Its result is pickled; other
    effects on objects of this process are lost.
    Raises what `work` raises, and InputError, which names the last input, if the child dies of a signal.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    results, child_results = _pipe()
    child_life, life = _pipe()
    with tempfile.TemporaryFile() as log:
        with warnings.catch_warnings():
            # The child uses no lock that another thread may hold: Arrow and NumPy prepare their own for a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.close(results)
            os.close(life)
            _child(work, child_results, child_life, log)
        os.close(child_results)
        os.close(child_life)
        try:
            with open(results, "rb") as messages:
                outcome, value, name = _receive(messages)
        finally:
            os.close(life)
            _end(child)
        log.seek(0)
        if outcome != "death" and sys.stderr is not None:
            sys.stderr.write(log.read().decode(errors="replace"))
    if outcome == "result":
        return value
    if outcome == "error":
        raise value
    raise InputError(
        f"{name} cannot be read (the library that reads it failed); it must be an undamaged file of its name's kind."
    )


def _pipe() -> tuple[int, int]:
    """Returns the ends of a pipe, neither of them a standard stream's number, which may be free."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _receive(messages: BinaryIO) -> tuple[str, Any, str]:
    """Returns ('result' or 'error', value, ''), or ('death', None, the input that was announced last)."""
    name = "The input"
    while True:
        try:
            outcome, value = pickle.load(messages)
        except (EOFError, pickle.UnpicklingError):
            return "death", None, name
        if outcome != "reading":
            return outcome, value, ""
        name = value


def _end(child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _child(work: Callable[[Announce], Any], results: int, life: int, log: BinaryIO) -> NoReturn:
    """Does the work and ends the process. What C++ code writes to stderr goes to the log, for the parent to print."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        threading.Thread(target=_die_with_parent, args=(life,), daemon=True).start()
        messages = open(results, "wb")  # noqa: SIM115
        if sys.stderr is sys.__stderr__ is not None:
            sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
        os.dup2(log.fileno(), 2)

        def announce(name: str) -> None:
            messages.write(pickle.dumps(("reading", name)))
            messages.flush()

        try:
            answer = "result", work(announce)
        except BaseException as error:
            answer = "error", _portable(error)
        messages.write(pickle.dumps(answer))
        messages.flush()
    finally:
        os._exit(0)


def _portable(error: BaseException) -> BaseException:
    """Returns the error if it can be pickled and is the user's, else one that has its traceback as its message."""
    if isinstance(error, InputError):
        return InputError(str(error))
    return RuntimeError("".join(traceback.format_exception(error)))


def _die_with_parent(life: int) -> None:
    # The parent alone has the other end open.
    os.read(life, 1)
    os._exit(1)
