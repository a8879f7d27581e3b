"""Reads the metrics of a run as curves: a file of any length becomes two thousand points at most.

The file is read once, in blocks, line by line. Its lines are collected in bins of equal width; the width
doubles when the bins are full. The time is linear in the size of the file, and the memory does not depend on it. A
short file keeps every line. A line needs only `epoch` and `tokens`, so runs of other programs can be drawn too. The
last line may be incomplete: the run may be in progress.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.show.style import LEAF_GROUPS
from nanoegg_mlx.store import metrics

KEYS = (
    "epoch", "tokens", "seconds", "loss_mean", "loss_min", "loss_max", "loss_std", "ties", "moved_matrix",
    "moved_vector", "alpha", "threshold", "tokens_per_second", "validation", "validation_exact", "rss_mb", "credit_rms",
    *(f"{figure}.{leaf}" for group in LEAF_GROUPS.values() for leaf in group for figure in ("moved", "signal")),
)  # fmt: skip
"""The numbers of a line that plots and reports use."""

POINTS = 1000
"""A curve has fewer than twice as many points."""

_BINS = len(metrics.WEIGHT_EDGES) - 1
_BLOCK = 4 << 20


@dataclass(frozen=True)
class Validation:
    """One validation of a run, in bits per byte; `exact` is NaN if the line has no exact figure."""

    epoch: int
    tokens: int
    figure: float
    exact: float


@dataclass
class Curves:
    """The content of a metrics.jsonl in bins. All arrays are float64, with NaN where the lines have no number."""

    lines: int = 0
    """Lines of the file."""
    width: int = 1
    """Lines in a bin."""
    mean: dict[str, np.ndarray] = field(default_factory=dict)
    """Each of KEYS -> (n,), the mean over the lines of each bin."""
    low: dict[str, np.ndarray] = field(default_factory=dict)
    """Each of KEYS -> (n,), the minimum."""
    high: dict[str, np.ndarray] = field(default_factory=dict)
    """Each of KEYS -> (n,), the maximum."""
    weights: np.ndarray = field(default_factory=lambda: np.empty((0, _BINS)))
    """(n, 53): the share of matrix entries in each bin of metrics.WEIGHT_EDGES."""
    last: dict[str, float] = field(default_factory=dict)
    """The KEYS of the last line."""
    first_validation: Validation | None = None
    best_validation: Validation | None = None
    last_validation: Validation | None = None

    def has(self, key: str) -> bool:
        """Returns whether any line has this number."""
        return key in self.mean and bool(np.isfinite(self.mean[key]).any())


@dataclass(frozen=True)
class RunCurves:
    """The parts of a run's folder that are drawn."""

    folder: Path
    name: str
    config: dict[str, dict[str, Any]]
    """The tables of config.toml, unchecked; empty if the file does not exist."""
    curves: Curves


def open_run(folder: str | Path, points: int = POINTS) -> RunCurves:
    """Reads a run's folder.

    Raises:
        InputError: metrics.jsonl does not exist, is damaged before its last line, or has no complete line.
    """
    folder = Path(folder)
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"The folder {folder} is not a run's; it must have a metrics.jsonl.")
    curves = read_curves(path, points)
    if not curves.lines:
        raise InputError(f"The run {folder} has nothing to draw yet; {path.name} must have at least one complete line.")
    config: dict[str, dict[str, Any]] = {}
    try:
        document = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        config = {table: entries for table, entries in document.items() if isinstance(entries, dict)}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / 'config.toml'} cannot be read: {error}.") from error
    return RunCurves(folder, folder.resolve().name, config, curves)


def read_curves(path: Path, points: int = POINTS) -> Curves:
    """Reads a metrics.jsonl into fewer than 2 `points` bins. Raises InputError for a damaged line before the last."""
    curves = Curves()
    bins = _Bins(points)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"The metrics {path} cannot be read: {error.strerror}.") from error
    with file:
        for block, last in _blocks(file):
            values = _parse(block, last, path, bins.lines)
            if len(values):
                _update_summary(curves, values)
                bins.add(values)
    curves.lines, curves.width = bins.lines, bins.width
    mean, low, high = bins.result()
    for number, key in enumerate(KEYS):
        curves.mean[key], curves.low[key], curves.high[key] = mean[:, number], low[:, number], high[:, number]
    curves.weights = mean[:, len(KEYS) :]
    return curves


def _blocks(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yields the complete lines of a file, some megabytes at a time, and whether they are the last ones."""
    pending: list[bytes] = []
    block = file.read(_BLOCK)
    while block:
        following = file.read(_BLOCK)
        whole, newline, rest = block.rpartition(b"\n")
        if newline:
            yield b"".join([*pending, whole, newline]), not following
            pending = []
        pending.append(rest)
        block = following


def _parse(block: bytes, last: bool, path: Path, before: int) -> np.ndarray:
    """Returns the lines of a block as (lines, KEYS and weight shares) float64."""
    lines = block.split(b"\n")[:-1]
    values = np.full((len(lines), len(KEYS) + _BINS), np.nan)
    try:
        records = [orjson.loads(line) for line in lines]
        values[:, : len(KEYS)] = [[record.get(key) for key in KEYS] for record in records]
        if np.isnan(values[:, :2]).any():
            raise ValueError
        for number, record in enumerate(records):
            if (weights := record.get("weights")) is not None:
                values[number, len(KEYS) :] = _shares(weights)
    except (ValueError, TypeError, AttributeError, OverflowError):
        # A line is damaged, or has NaN, which Python's json writes.
        return _parse_slowly(lines, last, path, before)
    return values


def _shares(weights: Any) -> np.ndarray:
    """Returns the shares of the weights' counts, (53,); NaN if they are not 53 counts. Raises ValueError, TypeError."""
    counts = np.array(weights, float)
    if counts.shape != (_BINS,):
        return np.full(_BINS, np.nan)
    with np.errstate(all="ignore"):
        return counts / counts.sum()


def _parse_slowly(lines: list[bytes], last: bool, path: Path, before: int) -> np.ndarray:
    """Parses line by line, with the result of `_parse`.

    Omits a damaged line at the end of the file. Raises InputError, with its number, for any other damaged line.
    """
    values = np.full((len(lines), len(KEYS) + _BINS), np.nan)
    for number, text in enumerate(lines):
        try:
            line = metrics.decode(text)
            for column, key in enumerate(KEYS):
                values[number, column] = np.nan if line.get(key) is None else float(line[key])
            if np.isnan(values[number, :2]).any():
                raise ValueError
            if (weights := line.get("weights")) is not None:
                values[number, len(KEYS) :] = _shares(weights)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if last and number == len(lines) - 1:
                return values[:-1]
            raise InputError(
                f"Line {before + number + 1} of {path} is damaged; it must be a JSON object with the numbers `epoch` "
                "and `tokens`."
            ) from error
    return values


def _update_summary(curves: Curves, values: np.ndarray) -> None:
    """Updates the last line and the first, best and last validation from the lines of a block."""
    curves.last = dict(zip(KEYS, values[-1, : len(KEYS)].tolist(), strict=True))
    figures = values[:, KEYS.index("validation")]
    rows = np.flatnonzero(np.isfinite(figures))
    if not len(rows):
        return

    def validation(row: int) -> Validation:
        line = dict(zip(KEYS, values[row, : len(KEYS)].tolist(), strict=True))
        return Validation(int(line["epoch"]), int(line["tokens"]), line["validation"], line["validation_exact"])

    best = validation(rows[np.argmin(figures[rows])])
    curves.first_validation = curves.first_validation or validation(rows[0])
    if curves.best_validation is None or best.figure < curves.best_validation.figure:
        curves.best_validation = best
    curves.last_validation = validation(rows[-1])


class _Bins:
    """Sums, counts, minima and maxima of the columns over at most 2 `points` bins of `width` lines."""

    def __init__(self, points: int) -> None:
        self.lines, self.width = 0, 1
        shape = (2 * points, len(KEYS) + _BINS)
        self._total, self._count = np.zeros(shape), np.zeros(shape)
        self._low, self._high = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, values: np.ndarray) -> None:
        """Adds lines, (lines, columns); NaN counts as missing."""
        while (self.lines + len(values) - 1) // self.width >= len(self._total):
            self._halve()
        index = (self.lines + np.arange(len(values))) // self.width
        starts = np.flatnonzero(np.diff(index, prepend=-1))
        bins = index[starts]
        finite = np.isfinite(values)
        self._total[bins] += np.add.reduceat(np.where(finite, values, 0), starts)
        self._count[bins] += np.add.reduceat(finite, starts, dtype=np.float64)
        low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
        high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
        self._low[bins] = np.minimum(self._low[bins], low)
        self._high[bins] = np.maximum(self._high[bins], high)
        self.lines += len(values)

    def _halve(self) -> None:
        """Merges neighbouring bins, which halves their number."""
        half = len(self._total) // 2
        for array, join, empty in (
            (self._total, np.add, 0.0),
            (self._count, np.add, 0.0),
            (self._low, np.minimum, np.inf),
            (self._high, np.maximum, -np.inf),
        ):
            array[:half] = join(array[0::2], array[1::2])
            array[half:] = empty
        self.width *= 2

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns mean, minimum and maximum of the bins in use, (n, columns) each."""
        n = -(-self.lines // self.width)
        known = self._count[:n] > 0
        mean = np.where(known, self._total[:n] / np.maximum(self._count[:n], 1), np.nan)
        return mean, np.where(known, self._low[:n], np.nan), np.where(known, self._high[:n], np.nan)
