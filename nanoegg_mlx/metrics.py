"""What a run tells about itself: metrics.jsonl, and a progress bar or plain lines on the terminal.

metrics.jsonl has one JSON object a line, one line an epoch, appended whole: safe to tail. `epoch` counts the epochs
that are done, so line 0 (nothing but a validation) stands for the initial parameters.
"""

from __future__ import annotations

import json
import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nanoegg_mlx.config import Config
from nanoegg_mlx.durable import AppendOnly
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.evaluate import Evaluation
from nanoegg_mlx.train import EpochResult

Record = dict[str, Any]
"""A line of metrics.jsonl."""


def record(epochs: int, tokens: int, result: EpochResult | None, validation: Evaluation | None) -> Record:
    """The line of an epoch.

    Args:
        epochs: epochs done, this one included.
        tokens: that the population has read since the run began.
        result: what the epoch did; None for the initial parameters.
        validation: of the parameters after it, if there was one.

    Returns:
        Losses and validation in bits per byte, shares in [0, 1], times in seconds. The caller adds `seconds` since the
        run began, `rss_mb` in MiB and `wire_bytes`, the payload that rank 0 of a job has sent since the line before.
    """
    line: Record = {"epoch": epochs, "tokens": tokens}
    if result is not None:
        line |= {
            "loss_mean": result.loss_mean,
            "loss_min": result.loss_min,
            "loss_max": result.loss_max,
            "loss_std": result.loss_std,
            "ties": float(np.mean(result.fitness == 0)),
            "moved_matrix": result.moved["matrix"],
            "moved_vector": result.moved["vector"],
            "alpha": result.alpha,
            "threshold": result.threshold,
            "tokens_per_second": result.tokens_per_second,
            "generate_seconds": result.generate_seconds,
            "update_seconds": result.update_seconds,
            "exchange_seconds": result.exchange_seconds,
            "sharded": result.sharded,
        }
    line["validation"] = validation and validation.bits_per_byte
    line["validation_exact"] = validation and validation.exact_bits_per_byte
    return line


class MetricsFile:
    """The metrics.jsonl of a run that is being trained."""

    def __init__(self, path: Path, epochs: int) -> None:
        """Opens or creates the file, and cuts off what lies beyond `epochs` epochs done and a torn last line.

        `lines` is what it holds then.
        """
        kept = [(line, end) for line, end in (_scan(path) if path.exists() else []) if line["epoch"] <= epochs]
        self.lines = [line for line, _ in kept]
        self._file = AppendOnly(path, kept[-1][1] if kept else 0)

    def append(self, line: Record) -> None:
        """Adds a line. Raises OSError where it cannot be written."""
        self._file.append(encode(line))
        self.lines.append(line)

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def encode(line: Record) -> bytes:
    """A line as it stands in the file."""
    return json.dumps(line).encode() + b"\n"


def read_metrics(path: Path) -> list[Record]:
    """The whole lines of a metrics.jsonl, up to a torn one at its end.

    Raises:
        InputError: the file cannot be read, or a line before the last is no JSON object with an `epoch`.
    """
    return [line for line, _ in _scan(path)]


def _scan(path: Path) -> list[tuple[Record, int]]:
    """Each whole line, and where it ends in the file."""
    try:
        pieces = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"The metrics {path} cannot be read: {error.strerror}.") from error
    lines, end = [], 0
    for number, piece in enumerate(pieces[:-1], 1):
        end += len(piece) + 1
        try:
            line = json.loads(piece)
            line["epoch"] + 0
        except (ValueError, KeyError, TypeError) as error:
            if number == len(pieces) - 1:
                break
            raise InputError(f"Line {number} of {path} is damaged: it has to be a JSON object with `epoch`.") from error
        lines.append((line, end))
    return lines


def resident_mb() -> float:
    """The process's resident memory in MiB: now on Linux, elsewhere the largest it has been."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / (1 << 20)
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


class Display:
    """How a run goes, on standard error: on a terminal a bar and a line of details below it, else a line an epoch."""

    def __init__(self, config: Config, epochs: int) -> None:
        """Begins at `epochs` done of `config.num_epochs`."""
        self.terminal = sys.stderr.isatty()
        bar = partial(tqdm, disable=not self.terminal, dynamic_ncols=True, leave=False)
        self.bar = bar(
            total=config.num_epochs,
            initial=epochs,
            unit="epoch",
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        )
        self.details = bar(total=0, position=1, bar_format="{desc}")
        self.validation: float | None = None

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.bar.write(text, file=sys.stderr)

    def epoch(self, line: Record) -> None:
        """Shows a line of the metrics."""
        validation = line["validation"]
        if validation is not None:
            self.validation = validation
        if "loss_mean" in line:
            self._losses(line)
        if validation is not None:
            exact = line["validation_exact"]
            self.say(f"epoch {line['epoch']}: validation {validation:.4f} bits per byte (exact {exact:.4f})")

    def _losses(self, line: Record) -> None:
        rate = f"{tqdm.format_sizeof(line['tokens_per_second'])} tokens/s"
        details = (
            f"[{line['loss_min']:.2f}, {line['loss_max']:.2f}] "
            f"moved {line['moved_matrix']:.1%} of matrices, {line['moved_vector']:.1%} of vectors, "
            f"threshold {line['threshold']}/16, "
            f"generate {line['generate_seconds']:.3f} s, update {line['update_seconds']:.3f} s"
        )
        if self.terminal:
            valid = "" if self.validation is None else f"valid {self.validation:.3f} "
            self.details.set_description_str(details, refresh=False)
            self.bar.set_postfix_str(f"loss {line['loss_mean']:.3f} {valid}{rate}", refresh=False)
            if self.bar.update():
                self.details.refresh()
        else:
            self.say(f"epoch {line['epoch']}: loss {line['loss_mean']:.3f} {details}, {rate}")

    def close(self) -> None:
        """Removes the bar."""
        self.details.close()
        self.bar.close()
