"""What a run writes down about itself: metrics.jsonl, one JSON object a line, one line an epoch.

A line is appended whole, so the file is safe to tail. `epoch` counts the epochs that are done: line 0, nothing but a
validation, stands for the initial parameters. Every line has

    epoch, tokens                             epochs done; tokens that the population has read since the run began
    loss_mean, loss_min, loss_max, loss_std   over the population, bits per byte
    ties                                      share of pairs whose fitness is 0
    moved_matrix, moved_vector                share of entries that the update changed
    alpha, threshold                          share that pure noise would move; sixteenths of a standard deviation
    tokens_per_second, generate_seconds, update_seconds
    exchange_seconds, wire_bytes, sharded     in a job of several processes: seconds until all fitness was there,
                                              bytes that rank 0 has sent since the line before, whether each
                                              process summed a share of the votes; else 0, 0, false
    validation, validation_exact              bits per byte: the reference's figure and the exact one, or null
    seconds, rss_mb                           training time up to here; resident memory in MiB

and where there was a validation

    weights                                   53 counts of all matrix entries by value: -127 alone, -126 to -123, then
                                              49 bins five wide from -122 to 122, 123 to 126, and 127 alone
    sample                                    what the model wrote by itself, where the config asks for that

so that the spread of the weights, and what of them sits at the limits, can be drawn without any checkpoint.
"""

from __future__ import annotations

import json
import mmap
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, leaves
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.evaluate import Evaluation
from nanoegg_mlx.store.durable import AppendOnly
from nanoegg_mlx.training.trainer import EpochResult

Record = dict[str, Any]
"""A line of metrics.jsonl."""

WEIGHT_EDGES = np.array([-127, *range(-126, -121, 4), *range(-117, 123, 5), 123, 127, 128])
"""(54,) the bins of `weights`: bin i counts the values v with WEIGHT_EDGES[i] <= v < WEIGHT_EDGES[i + 1]."""


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


def weight_histogram(config: Config, params: Params) -> list[int]:
    """How many entries of all matrices have a value in each bin of WEIGHT_EDGES: 53 counts."""
    counts = np.zeros(256, np.int64)
    for leaf in leaves(config):
        if leaf.kind == "matrix":
            values = np.array(params[leaf.name]).view(np.uint8).ravel()
            for start in range(0, len(values), 1 << 20):  # bincount works on a copy in int64
                counts += np.bincount(values[start : start + (1 << 20)], minlength=256)
    by_value = np.roll(counts, 128)  # index v + 128; -128 does not occur
    return [int(count) for count in np.add.reduceat(by_value, WEIGHT_EDGES[:-1] + 128)]


class MetricsFile:
    """The metrics.jsonl of a run that is being trained. It is read from its end, and none of it is kept in memory."""

    def __init__(self, path: Path, epochs: int) -> None:
        """Opens or creates the file, and cuts off what lies beyond `epochs` epochs done and a torn last line."""
        self.last: Record | None = None
        """The last line."""
        self.first_validation: Record | None = None
        self.last_validation: Record | None = None
        size = 0
        for line, end in _backwards(path) if path.exists() else ():
            if line["epoch"] <= epochs:
                if self.last is None:
                    self.last, size = line, end
                if line.get("validation") is not None:
                    self.last_validation = line
                    break
        if self.last_validation:
            self.first_validation = next(line for line in iterate(path) if line.get("validation") is not None)
        self._file = AppendOnly(path, size)

    @property
    def validations(self) -> list[Record]:
        """The first and the last line with a validation; none, one or two lines."""
        first, last = self.first_validation, self.last_validation
        if not (first and last):
            return []
        return [first] if first["epoch"] == last["epoch"] else [first, last]

    def append(self, line: Record) -> None:
        """Adds a line. Raises OSError where it cannot be written."""
        self._file.append(encode(line))
        self.last = line
        if line.get("validation") is not None:
            self.last_validation = line
            self.first_validation = self.first_validation or line

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def encode(line: Record) -> bytes:
    """A line as it stands in the file."""
    return json.dumps(line).encode() + b"\n"


def decode(line: bytes) -> Record:
    """A line of the file. Raises ValueError where it is no JSON object with a number `epoch`."""
    try:
        record = json.loads(line)
        record["epoch"] + 0
    except (KeyError, TypeError) as error:
        raise ValueError("no JSON object with `epoch`") from error
    return record


def iterate(path: Path) -> Iterator[Record]:
    """The whole lines of a metrics.jsonl one by one, up to a torn one at its end.

    Raises:
        InputError: the file cannot be read, or a line before the last is no JSON object with an `epoch`.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"The metrics {path} cannot be read: {error.strerror}.") from error
    with file:
        for number, piece in enumerate(file, 1):
            if not piece.endswith(b"\n"):
                return
            try:
                line = decode(piece)
            except ValueError as error:
                if not file.readline():
                    return
                raise InputError(
                    f"Line {number} of {path} is damaged: it has to be a JSON object with `epoch`."
                ) from error
            yield line


def read_metrics(path: Path) -> list[Record]:
    """All that `iterate` yields, raising the same."""
    return list(iterate(path))


def _backwards(path: Path) -> Iterator[tuple[Record, int]]:
    """The lines that `iterate` yields, last one first, and where each ends in the file."""
    with path.open("rb") as file:
        if not file.read(1):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            whole = end = content.rfind(b"\n") + 1
            while end:
                start = content.rfind(b"\n", 0, end - 1) + 1
                try:
                    yield decode(content[start:end]), end
                except ValueError as error:
                    if end < whole:
                        raise InputError(
                            f"{path} is damaged at byte {start}: there has to be a JSON object with `epoch`."
                        ) from error
                end = start


def resident_mb() -> float:
    """The process's resident memory in MiB: now on Linux, elsewhere the largest it has been."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / (1 << 20)
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
