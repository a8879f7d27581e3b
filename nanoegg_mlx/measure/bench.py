"""Throughput: whole epochs (noise, score, update) and validation, beside the machine's int8 peak of the same minutes.

Every case runs in a process of its own, so that its resident memory is its own. The peak is a loop of int8 dot products
in registers on all threads, measured before and after every epoch: an epoch's share is of the mean of its two
neighbours, since the peak itself moves on a machine that others use too. Medians of several epochs. Another
implementation can be timed beside each case by a command of the user's.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path
from typing import Any

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import init_params
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.evaluate import validate
from nanoegg_mlx.training.trainer import Trainer


@dataclass(frozen=True)
class Case:
    """One line of the table: a model, a population (or rows, for validation) and tokens."""

    title: str
    n_layer: int
    n_embd: int
    population: int
    tokens: int
    validation: bool = False


PLACEHOLDERS = ("n_layer", "n_embd", "population", "tokens")
DEFAULT = (6, 256)
SMALL = (1, 64)
CASES = [
    Case("default model", *DEFAULT, 256, 100),
    Case("default model, population 1024", *DEFAULT, 1024, 100),
    Case("default model, population 4096", *DEFAULT, 4096, 100),
    Case("default model, validation", *DEFAULT, 1024, 100, validation=True),
    Case("1 layer, 64 wide", *SMALL, 4096, 50),
    Case("1 layer, 64 wide, validation", *SMALL, 4096, 50, validation=True),
]
SCALING = [
    *(Case("population", *DEFAULT, population, 20) for population in (64, 256, 1024, 4096, 16384)),
    *(Case("tokens", *DEFAULT, 256, tokens) for tokens in (25, 50, 100, 200)),
    *(Case("layers", layers, 256, 256, 50) for layers in (1, 2, 3, 6, 12)),
    *(Case("population, small model", *SMALL, population, 50) for population in (64, 256, 1024, 4096, 16384)),
]


def multiply_adds(n_layer: int, n_embd: int, vocab_size: int = 256) -> int:
    """Int8 multiply-adds of the weight matrices for one token of one member."""
    return n_layer * 12 * n_embd**2 + vocab_size * n_embd


def measure(case: Case, repeats: int, engine: str, threads: int) -> dict[str, Any]:
    """Runs a case in this process.

    Returns:
        The case's fields; engine; medians of tokens_per_second, multiply_adds_per_second, milliseconds (of an epoch)
        and update_share (of the epoch); resident_mb (the process's largest). With the CPU engine also the medians of
        peak (int8 multiply-adds per second) and peak_share, else None.
    """
    config = Config(
        n_layer=case.n_layer,
        n_embd=case.n_embd,
        population=case.population,
        tokens_per_update=case.tokens,
        validation_batch_size=case.population,
        engine=engine,
        threads=threads,
    )
    lanes = case.population if case.validation else config.lanes
    tokens = np.random.default_rng(0).integers(1, 256, lanes * (case.tokens + 1), np.uint8)
    epoch: Callable[[], float]
    if case.validation:
        params = init_params(config)

        def epoch() -> float:
            validate(params, tokens, config)
            return 0.0
    else:
        trainer = Trainer(config, tokens)

        def epoch() -> float:
            result = trainer.step()
            return result.update_seconds / (result.generate_seconds + result.update_seconds)

    chosen = make_engine(config).name
    epoch()
    peaks = [_peak(chosen, threads)]
    seconds, update_shares = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        update_shares.append(epoch())
        seconds.append(time.perf_counter() - started)
        peaks.append(_peak(chosen, threads))

    products = case.population * case.tokens * multiply_adds(case.n_layer, case.n_embd)
    shares = [
        2 * products / of_epoch / (before + after)
        for of_epoch, (before, after) in zip(seconds, pairwise(peaks), strict=True)
        if before
    ]
    return {
        **asdict(case),
        "engine": chosen,
        "tokens_per_second": case.population * case.tokens / statistics.median(seconds),
        "multiply_adds_per_second": products / statistics.median(seconds),
        "milliseconds": 1e3 * statistics.median(seconds),
        "update_share": statistics.median(update_shares),
        "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1 << (20 if sys.platform == "darwin" else 10)),
        "peak": statistics.median(peaks) or None,
        "peak_share": statistics.median(shares) if shares else None,
    }


def _peak(engine: str, threads: int) -> float:
    """Int8 multiply-adds per second of dot products in registers; 0 where the CPU engine is not in use."""
    if engine != "cpu":
        return 0.0
    from nanoegg_mlx.engines import _native

    return _native.peak(threads, 0.2)


def reference_rate(command: str, case: Case) -> float:
    """Tokens per second of another implementation on a case: what a shell command says in its last line.

    Args:
        command: shell text; {n_layer}, {n_embd}, {population} and {tokens} in it become the case's numbers. Its last
            line of output has to be a JSON object with a positive number `tokens_per_second`.

    Raises:
        InputError: the command fails or ends with another line.
    """
    for name in PLACEHOLDERS:
        command = command.replace(f"{{{name}}}", str(getattr(case, name)))
    done = subprocess.run(command, shell=True, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = f": {lines[-1]}" if lines else ", without a word on stderr"
        raise InputError(f"The reference command {command!r} ended with exit code {done.returncode}{said}")
    lines = done.stdout.strip().splitlines()
    try:
        rate = json.loads(lines[-1])["tokens_per_second"] if lines else None
    except (ValueError, TypeError, KeyError):
        rate = None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        last = f"it is {lines[-1]!r}" if lines else "it printed nothing"
        raise InputError(
            f"The last line of the reference command {command!r} has to be a JSON object with a positive number "
            f"tokens_per_second; {last}."
        )
    return float(rate)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg bench` and benchmarks/throughput.py."""
    parser.description = "Tokens per second of whole epochs and of validation, beside the machine's int8 peak."
    parser.add_argument(
        "--scaling", action="store_true", help="population, tokens and layers, instead of the main cases"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="epochs a case, medians count (default: 5)")
    parser.add_argument("--engine", choices=("auto", "mlx", "cpu"), default="auto", help="(default: auto)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU engine (0: all usable cores)")
    parser.add_argument(
        "--reference-command",
        metavar="COMMAND",
        help="shell command that times another implementation, such as the published reference, on every training "
        "case; {n_layer}, {n_embd}, {population} and {tokens} in it become the case's numbers, and its last line of "
        "output has to be a JSON object with tokens_per_second",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--case", metavar="JSON", help=argparse.SUPPRESS)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Measures and prints the table; returns the exit code."""
    if options.case:
        figures = measure(Case(**json.loads(options.case)), options.repeats, options.engine, options.threads)
        print(json.dumps(figures))
        return 0
    if options.repeats < 1:
        raise InputError(f"--repeats {options.repeats} is not allowed; it has to be at least 1.")
    if options.json and not options.json.parent.is_dir():
        raise InputError(f"--json {options.json} cannot be written: there is no folder {options.json.parent}.")
    rows = []
    print(HEADER, flush=True)
    for case in SCALING if options.scaling else CASES:
        reference = None
        if options.reference_command and not case.validation:
            reference = reference_rate(options.reference_command, case)
        command = [sys.executable, "-m", "nanoegg_mlx.measure.bench", "--case", json.dumps(asdict(case))]
        command += ["--repeats", str(options.repeats), "--engine", options.engine, "--threads", str(options.threads)]
        measured = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if measured.returncode:  # it has said why
            return measured.returncode
        row = json.loads(measured.stdout)
        rows.append(row)
        print(line(row), flush=True)
        if reference:
            row["reference_tokens_per_second"] = reference
            row["times_reference"] = row["tokens_per_second"] / reference
            print(reference_line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


HEADER = (
    f"{'case':<32}{'layers':>7}{'width':>6}{'members':>8}{'tokens':>7}{'tokens/s':>12}{'Gmadd/s':>9}{'of peak':>9}"
    f"{'update':>8}{'ms':>9}{'RSS MB':>8}"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    share = f"{row['peak_share']:.0%}" if row["peak_share"] else "-"
    update = "-" if row["validation"] else f"{row['update_share']:.1%}"
    return (
        f"{row['title']:<32}{row['n_layer']:>7}{row['n_embd']:>6}{row['population']:>8}{row['tokens']:>7}"
        f"{row['tokens_per_second']:>12,.0f}{row['multiply_adds_per_second'] / 1e9:>9.1f}{share:>9}{update:>8}"
        f"{row['milliseconds']:>9.1f}{row['resident_mb']:>8.0f}"
    )


def reference_line(row: dict[str, Any]) -> str:
    """The reference command's row of the table, below that of its case."""
    return (
        f"{'  reference command':<32}{row['n_layer']:>7}{row['n_embd']:>6}{row['population']:>8}{row['tokens']:>7}"
        f"{row['reference_tokens_per_second']:>12,.0f}   the case above is {row['times_reference']:,.1f} times as fast"
    )


def main(prog: str) -> int:
    """The bench as a program of its own; returns the exit code."""
    parser = argparse.ArgumentParser(prog=prog)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main("python -m nanoegg_mlx.measure.bench"))
