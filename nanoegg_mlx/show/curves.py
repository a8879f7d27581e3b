"""A run's metrics as curves to draw: a file of any length becomes a few thousand points at most.

The file is read once, in blocks, and its lines are gathered in bins of equally many lines, whose width doubles whenever
there are too many: time is linear in the file, memory does not depend on it. A short file keeps every line. Only
`epoch` and `tokens` have to be there, so runs of other kinds can be drawn beside ours; a run in progress, with half a
line at its end, is as good as any.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.json

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store import metrics

KEYS = (
    "epoch", "tokens", "seconds", "loss_mean", "loss_min", "loss_max", "loss_std", "ties", "moved_matrix",
    "moved_vector", "alpha", "threshold", "tokens_per_second", "validation", "validation_exact", "rss_mb",
)  # fmt: skip
"""The numbers of a line that are drawn or told."""

POINTS = 1000
"""A curve has fewer than twice as many points."""

_BINS = len(metrics.WEIGHT_EDGES) - 1
_BLOCK = 4 << 20
_SCHEMA = pa.schema([*[(key, pa.float64()) for key in KEYS], ("weights", pa.list_(pa.float64()))])
_PARSE = pyarrow.json.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="ignore")


@dataclass(frozen=True)
class Validation:
    """One validation of a run, in bits per byte; `exact` is NaN where the line has none."""

    epoch: int
    tokens: int
    figure: float
    exact: float


@dataclass
class Curves:
    """What a metrics.jsonl says, binned; all arrays are float64 with NaN where the lines have no such number."""

    lines: int = 0
    """Lines of the file."""
    width: int = 1
    """Lines in a bin."""
    mean: dict[str, np.ndarray] = field(default_factory=dict)
    """For each of KEYS (n,): the mean over each bin's lines."""
    low: dict[str, np.ndarray] = field(default_factory=dict)
    high: dict[str, np.ndarray] = field(default_factory=dict)
    weights: np.ndarray = field(default_factory=lambda: np.empty((0, _BINS)))
    """(n, 53): the share of matrix entries in each bin of metrics.WEIGHT_EDGES."""
    last: dict[str, float] = field(default_factory=dict)
    """The last line's KEYS."""
    first_validation: Validation | None = None
    best_validation: Validation | None = None
    last_validation: Validation | None = None

    def has(self, key: str) -> bool:
        """Whether any line has this number."""
        return key in self.mean and bool(np.isfinite(self.mean[key]).any())


@dataclass(frozen=True)
class RunCurves:
    """A run's folder, as far as it is drawn."""

    folder: Path
    name: str
    config: dict[str, dict[str, Any]]
    """config.toml as it stands there, table by table; empty if there is none."""
    curves: Curves


def open_run(folder: str | Path, points: int = POINTS) -> RunCurves:
    """Reads a run's folder.

    Raises:
        InputError: there is no metrics.jsonl, or it is damaged before its last line, or has no line.
    """
    folder = Path(folder)
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"There is no run in {folder}; a run's folder has a metrics.jsonl.")
    curves = read_curves(path, points)
    if not curves.lines:
        raise InputError(f"The run {folder} has nothing to draw yet; {path.name} has no whole line.")
    config: dict[str, dict[str, Any]] = {}
    try:
        document = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        config = {table: entries for table, entries in document.items() if isinstance(entries, dict)}
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.toml'} cannot be read: {error}.") from error
    return RunCurves(folder, folder.resolve().name, config, curves)


def read_curves(path: Path, points: int = POINTS) -> Curves:
    """Reads a metrics.jsonl into fewer than 2 `points` bins. Raises InputError where metrics.iterate does."""
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
                _note(curves, values)
                bins.add(values)
    curves.lines, curves.width = bins.lines, bins.width
    mean, low, high = bins.result()
    for number, key in enumerate(KEYS):
        curves.mean[key], curves.low[key], curves.high[key] = mean[:, number], low[:, number], high[:, number]
    curves.weights = mean[:, len(KEYS) :]
    return curves


def _blocks(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """The whole lines of a file, some megabytes of them at a time, and whether they are the last."""
    rest = b""
    block = file.read(_BLOCK)
    while block:
        following = file.read(_BLOCK)
        whole, newline, rest_after = (rest + block).rpartition(b"\n")
        rest, block = rest_after, following
        if newline:
            yield whole + newline, not following


def _parse(block: bytes, last: bool, path: Path, before: int) -> np.ndarray:
    """The lines of a block as (lines, KEYS and weight shares) float64."""
    try:
        read = pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
        table = pyarrow.json.read_json(pa.BufferReader(block), read_options=read, parse_options=_PARSE)
        if table["epoch"].null_count or table["tokens"].null_count or len(table) != block.count(b"\n"):
            raise ValueError
    except (pa.ArrowInvalid, ValueError):
        return _parse_slowly(block, last, path, before)
    values = np.full((len(table), len(KEYS) + _BINS), np.nan)
    for number, key in enumerate(KEYS):
        values[:, number] = table[key].to_numpy()
    counts = table["weights"].combine_chunks()
    there = np.flatnonzero(counts.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) == _BINS)
    if len(there):
        kept = counts.take(pa.array(there)).flatten().to_numpy(zero_copy_only=False).reshape(-1, _BINS)
        values[there, len(KEYS) :] = kept / kept.sum(axis=1, keepdims=True)
    return values


def _parse_slowly(block: bytes, last: bool, path: Path, before: int) -> np.ndarray:
    """What `_parse` returns, line by line: finds the damaged one, and passes over it where it is the file's last."""
    lines = block.split(b"\n")[:-1]
    values = np.full((len(lines), len(KEYS) + _BINS), np.nan)
    for number, text in enumerate(lines):
        try:
            line = metrics.decode(text)
            for column, key in enumerate(KEYS):
                values[number, column] = np.nan if line.get(key) is None else float(line[key])
            if np.isnan(values[number, :2]).any():
                raise ValueError
            weights = line.get("weights")
            if weights is not None and len(weights) == _BINS:
                values[number, len(KEYS) :] = np.array(weights, float) / sum(weights)
        except (ValueError, TypeError) as error:
            if last and number == len(lines) - 1:
                return values[:-1]
            raise InputError(
                f"Line {before + number + 1} of {path} is damaged: it has to be a JSON object with the numbers "
                "`epoch` and `tokens`."
            ) from error
    return values


def _note(curves: Curves, values: np.ndarray) -> None:
    """Keeps the last line of a block and its first, best and last validation."""
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
    """Sums, counts, minima and maxima of the columns over bins of `width` lines; fewer than 2 `points` bins."""

    def __init__(self, points: int) -> None:
        self.lines, self.width = 0, 1
        shape = (2 * points, len(KEYS) + _BINS)
        self._total, self._count = np.zeros(shape), np.zeros(shape)
        self._low, self._high = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, values: np.ndarray) -> None:
        """Adds lines, (lines, columns)."""
        while (self.lines + len(values) - 1) // self.width >= len(self._total):
            self._halve()
        index = (self.lines + np.arange(len(values))) // self.width
        starts = np.flatnonzero(np.diff(index, prepend=-1))
        bins = index[starts]
        there = np.isfinite(values)
        self._total[bins] += np.add.reduceat(np.where(there, values, 0), starts)
        self._count[bins] += np.add.reduceat(there, starts, dtype=np.float64)
        low = np.minimum.reduceat(np.where(there, values, np.inf), starts)
        high = np.maximum.reduceat(np.where(there, values, -np.inf), starts)
        self._low[bins] = np.minimum(self._low[bins], low)
        self._high[bins] = np.maximum(self._high[bins], high)
        self.lines += len(values)

    def _halve(self) -> None:
        """Joins the bins two by two."""
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
        """Mean, minimum and maximum of the bins that have a line, (n, columns) each."""
        n = -(-self.lines // self.width)
        there = self._count[:n] > 0
        mean = np.where(there, self._total[:n] / np.maximum(self._count[:n], 1), np.nan)
        return mean, np.where(there, self._low[:n], np.nan), np.where(there, self._high[:n], np.nan)
