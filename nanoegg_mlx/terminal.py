"""The command line's surroundings: broken standard streams, and errors as one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TextIO, cast

from nanoegg_mlx.errors import InputError, JobError, ReportedElsewhere


def repair_streams() -> None:
    """Opens closed standard streams on the null device; the others print escapes for what they cannot encode."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # A file that is opened next would get this number, and messages for the stream would be written into it.
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    for name in ("stdout", "stderr"):
        stream = cast(TextIO | None, getattr(sys, name))
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def exit_code(command: Callable[[], int], interrupted: str = "Interrupted.") -> int:
    """Parses and runs a command; prints its error as one sentence after `error: `, after Ctrl-C the text `interrupted`.

    Returns:
        0 done, 2 bad input, 3 a process of the job was lost, 130 interrupted.
    """
    try:
        try:
            code = command()
        except SystemExit as left:  # by argparse, after a help text or a wrong argument, or by a signal's handler
            code = int(left.code or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of the output has left, as `head` does: no error.
        _discard_output()
        return 0
    except ReportedElsewhere:
        return 2
    except InputError as error:
        # Messages of other libraries, quoted in ours, may span several lines.
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}; nothing was overwritten.", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: There is not enough memory; a smaller model, population or chunk needs less.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def _discard_output() -> None:
    """Sends further output to the null device, so that flushing at the exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
