"""Throughput of whole epochs (noise, score, update), of validation and of compression, beside the int8 peak.

The peak is a loop of int8 dot products in registers on all threads, measured before and after every epoch. The share of
an epoch refers to the mean of its two neighbouring peaks, because the peak varies on a machine with other users. All
figures are medians of several epochs. The caller defines the epoch. A process must measure one case only: resident
memory belongs to the process. A shell command can time another implementation on the same case.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError


@dataclass(frozen=True)
class Case:
    """One line of the table: a model, a population (for validation rows, for compression lanes) and tokens of each
    member."""

    title: str
    n_layer: int
    n_embd: int
    population: int
    tokens: int
    validation: bool = False
    perturb: str = "weights"
    decorrelate: bool = False
    compared: int = 0
    """Members of a lane that are compared with its first one (`antithetic = false`); 0: pairs."""
    coding: str = ""
    """`encode` or `decode` for compression, a token being a byte."""

    def config(self, engine: str, threads: int) -> Config:
        """Returns the config of the case. Raises InputError for an engine or a number of threads out of range."""
        return Config(
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            population=self.population,
            tokens_per_update=self.tokens,
            validation_batch_size=self.population,
            perturb=self.perturb,
            decorrelate=self.decorrelate,
            antithetic=not self.compared,
            group_size=self.compared or 2,
            engine=engine,
            threads=threads,
        )

    def text(self, config: Config) -> np.ndarray:
        """Returns random tokens (size,) uint8 for one epoch, validation or compression."""
        lanes = self.population if self.validation or self.coding else config.lanes
        return np.random.default_rng(0).integers(1, 256, lanes * (self.tokens + 1), np.uint8)


PLACEHOLDERS = ("n_layer", "n_embd", "population", "tokens")
"""Fields of a case that a reference command can contain in braces."""

DEFAULT = (6, 256)
SMALL = (1, 64)
CASES = [
    Case("default model", *DEFAULT, 256, 100),
    Case("default model, population 1024", *DEFAULT, 1024, 100),
    Case("default model, population 4096", *DEFAULT, 4096, 100),
    Case("default model, activations", *DEFAULT, 1024, 100, perturb="activations"),
    Case("default model, decorrelated", *DEFAULT, 1024, 100, perturb="activations", decorrelate=True),
    Case("default model, lane baseline", *DEFAULT, 1024, 100, perturb="activations", decorrelate=True, compared=32),
    Case("default model, validation", *DEFAULT, 1024, 100, validation=True),
    Case("default model, compress", *DEFAULT, 1024, 100, coding="encode"),
    Case("default model, decompress", *DEFAULT, 1024, 100, coding="decode"),
    Case("1 layer, 64 wide", *SMALL, 4096, 50),
    Case("1 layer, 64 wide, activations", *SMALL, 4096, 50, perturb="activations"),
    Case("1 layer, 64 wide, decorrelated", *SMALL, 4096, 50, perturb="activations", decorrelate=True),
    Case("1 layer, 64 wide, lane baseline", *SMALL, 4096, 50, perturb="activations", decorrelate=True, compared=32),
    Case("1 layer, 64 wide, validation", *SMALL, 4096, 50, validation=True),
    Case("1 layer, 64 wide, compress", *SMALL, 4096, 50, coding="encode"),
    Case("1 layer, 64 wide, decompress", *SMALL, 4096, 50, coding="decode"),
]
SCALING = [
    *(Case("population", *DEFAULT, population, 20) for population in (64, 256, 1024, 4096, 16384)),
    *(Case("tokens", *DEFAULT, 256, tokens) for tokens in (25, 50, 100, 200)),
    *(Case("layers", layers, 256, 256, 50) for layers in (1, 2, 3, 6, 12)),
    *(Case("population, small model", *SMALL, population, 50) for population in (64, 256, 1024, 4096, 16384)),
]


def multiply_adds(n_layer: int, n_embd: int, vocab_size: int = 256) -> int:
    """Returns the int8 multiply-adds of the weight matrices for one token of one member."""
    return n_layer * 12 * n_embd**2 + vocab_size * n_embd


def work_of_token(config: Config) -> int:
    """Returns the int8 multiply-adds for one token of one member: the forward pass, and with nudged activations the
    votes, one product of the same size for each pair, or two for each lane with a baseline."""
    forward = multiply_adds(config.n_layer, config.n_embd, config.vocab_size)
    if config.perturb == "weights":
        return forward
    return forward + forward * (1 if config.antithetic else 2) // config.cohort


def products(case: Case) -> int:
    """Returns the int8 multiply-adds of an epoch that depend on the model."""
    return case.population * case.tokens * work_of_token(case.config("auto", 0))


def measure(case: Case, epoch: Callable[[], float], config: Config, repeats: int) -> dict[str, Any]:
    """Times epochs of a case in this process.

    Args:
        case: names the epoch and sets its work.
        epoch: runs one epoch, or one validation, of the case; returns the update's share of its time.
        config: of the case; sets the engine and its threads.
        repeats: epochs to time, after one that is not timed.

    Returns:
        The case's fields; engine; threads (1 for an engine that chooses them); medians of tokens_per_second,
        multiply_adds_per_second, milliseconds (of an epoch) and update_share (of the epoch); resident_mb (the process's
        largest). With the CPU engine also the medians of
        peak (int8 multiply-adds per second) and peak_share, else None.
    """
    epoch()
    engine = make_engine(config).name  # of `auto` the one that the epoch before has found
    peaks = [_peak(engine, config.threads)]
    seconds, update_shares = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        update_shares.append(epoch())
        seconds.append(time.perf_counter() - started)
        peaks.append(_peak(engine, config.threads))

    work = products(case)
    shares = [
        2 * work / of_epoch / (before + after)
        for of_epoch, (before, after) in zip(seconds, pairwise(peaks), strict=True)
        if before
    ]
    return {
        **asdict(case),
        "engine": engine,
        "threads": _threads(engine, config),
        "tokens_per_second": case.population * case.tokens / statistics.median(seconds),
        "multiply_adds_per_second": work / statistics.median(seconds),
        "milliseconds": 1e3 * statistics.median(seconds),
        "update_share": statistics.median(update_shares),
        "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1 << (20 if sys.platform == "darwin" else 10)),
        "peak": statistics.median(peaks) or None,
        "peak_share": statistics.median(shares) if shares else None,
    }


def _threads(engine: str, config: Config) -> int:
    if engine != "cpu":
        return 1
    from nanoegg_mlx.engines import _native

    return config.threads or _native.info()["threads"]


def _peak(engine: str, threads: int) -> float:
    """Returns int8 multiply-adds per second of dot products in registers; 0 for engines other than the CPU engine."""
    if engine != "cpu":
        return 0.0
    from nanoegg_mlx.engines import _native

    return _native.peak(threads, 0.2)


def reference_rate(command: str, case: Case) -> float:
    """Runs a shell command that times another implementation; returns its tokens per second.

    Args:
        command: shell text; the numbers of the case replace {n_layer}, {n_embd}, {population} and {tokens} in it. Its
            last line of output must be a JSON object with a positive number `tokens_per_second`.

    Raises:
        InputError: the command fails, or its last line has another form.
    """
    for name in PLACEHOLDERS:
        command = command.replace(f"{{{name}}}", str(getattr(case, name)))
    done = subprocess.run(command, shell=True, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = f": {lines[-1]}" if lines else ", and its stderr is empty"
        raise InputError(f"The reference command {command!r} ended with exit code {done.returncode}{reason}")
    lines = done.stdout.strip().splitlines()
    try:
        rate = json.loads(lines[-1])["tokens_per_second"] if lines else None
    except (ValueError, TypeError, KeyError):
        rate = None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        last = f"is {lines[-1]!r}" if lines else "is missing"
        raise InputError(
            f"The last line of output of the reference command {command!r} {last}; it must be a JSON object with a "
            "positive number tokens_per_second."
        )
    return float(rate)


HEADER = (
    f"{'case':<32}{'layers':>7}{'width':>6}{'members':>8}{'tokens':>7}{'tokens/s':>12}{'Gmadd/s':>9}{'of peak':>9}"
    f"{'update':>8}{'ms':>9}{'RSS MB':>8}"
)


def line(row: dict[str, Any]) -> str:
    """Formats the figures of a case as a row of the table."""
    share = f"{row['peak_share']:.0%}" if row["peak_share"] else "-"
    update = "-" if row["validation"] or row["coding"] else f"{row['update_share']:.1%}"
    return (
        f"{row['title']:<32}{row['n_layer']:>7}{row['n_embd']:>6}{row['population']:>8}{row['tokens']:>7}"
        f"{row['tokens_per_second']:>12,.0f}{row['multiply_adds_per_second'] / 1e9:>9.1f}{share:>9}{update:>8}"
        f"{row['milliseconds']:>9.1f}{row['resident_mb']:>8.0f}"
    )


def reference_line(row: dict[str, Any]) -> str:
    """Formats the figures of the reference command as a row below that of its case."""
    return (
        f"{'  reference command':<32}{row['n_layer']:>7}{row['n_embd']:>6}{row['population']:>8}{row['tokens']:>7}"
        f"{row['reference_tokens_per_second']:>12,.0f}   the case above is {row['times_reference']:,.1f} times as fast"
    )


def times_weights(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """Returns tokens/s of a case of nudged activations over those of perturbed weights on the same model and
    population, each relative to its own peak; None where `rows` has no such case."""
    if row["perturb"] != "activations":
        return None
    return _times(row, rows, perturb="weights", validation=row["validation"], coding="")


def times_validation(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """Returns tokens/s of a case of compression over those of validation, as `times_weights`."""
    return _times(row, rows, validation=True) if row["coding"] else None


def _times(row: dict[str, Any], rows: list[dict[str, Any]], **kind: Any) -> float | None:
    wanted = {**{name: row[name] for name in PLACEHOLDERS}, **kind}
    for other in rows:
        if all(other[name] == value for name, value in wanted.items()):
            rates = [figures["tokens_per_second"] / (figures["peak"] or 1.0) for figures in (row, other)]
            return float(rates[0] / rates[1])
    return None


def weights_line(row: dict[str, Any]) -> str:
    """Formats the comparison with perturbed weights as a row below that of its case."""
    return f"{'  beside perturbed weights':<32}{row['times_weights']:>38.2f} times the tokens/s, at equal peaks"


def coding_line(row: dict[str, Any]) -> str:
    """Formats the speed of compression as a row below that of its case."""
    per_core = row["tokens_per_second"] / row["threads"] / 1e6
    validation = ""
    if row["times_validation"] is not None:
        validation = f", {row['times_validation']:.2f} times validation's tokens/s, at equal peaks"
    return f"{'  bytes':<32}{per_core:>33.2f} MB/s a core{validation}"
