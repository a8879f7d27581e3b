"""Throughput: whole epochs (noise, score, update) and validation, beside the machine's int8 peak of the same minutes.

Every case runs in a process of its own, so that its resident memory is its own. The peak is a loop of int8 dot products
in registers on all threads, measured right before and after the case's epochs. Medians of several epochs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.engines import native_problem
from nanoegg_mlx.evaluate import validate
from nanoegg_mlx.params import init_params
from nanoegg_mlx.train import Trainer


@dataclass(frozen=True)
class Case:
    """One line of the table: a model, a population (or rows, for validation) and tokens."""

    title: str
    n_layer: int
    n_embd: int
    population: int
    tokens: int
    validation: bool = False


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
        The case's fields, tokens_per_second, multiply_adds_per_second, milliseconds (of an epoch), update_share of
        the epoch, and resident_mb (the process's largest). With the CPU engine also peak (int8 multiply-adds per
        second) and peak_share.
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

    epoch()
    peaks = [_peak(engine, threads)]
    seconds, update_shares = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        update_shares.append(epoch())
        seconds.append(time.perf_counter() - started)
    peaks.append(_peak(engine, threads))

    rate = case.population * case.tokens / statistics.median(seconds)
    products = rate * multiply_adds(case.n_layer, case.n_embd)
    peak = statistics.mean(peaks)
    return {
        **asdict(case),
        "tokens_per_second": rate,
        "multiply_adds_per_second": products,
        "milliseconds": 1e3 * statistics.median(seconds),
        "update_share": statistics.median(update_shares),
        "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1 << (20 if sys.platform == "darwin" else 10)),
        "peak": peak or None,
        "peak_share": products / peak if peak else None,
    }


def _peak(engine: str, threads: int) -> float:
    """Int8 multiply-adds per second of dot products in registers; 0 where the CPU engine is not in use."""
    if engine == "mlx" or native_problem():
        return 0.0
    from nanoegg_mlx.engines import _native

    return _native.peak(threads, 0.4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg bench` and benchmarks/throughput.py."""
    parser.description = "Tokens per second of whole epochs and of validation, beside the machine's int8 peak."
    parser.add_argument(
        "--scaling", action="store_true", help="population, tokens and layers, instead of the main cases"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="epochs a case, medians count (default: 5)")
    parser.add_argument("--engine", choices=("auto", "mlx", "cpu"), default="auto", help="(default: auto)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU engine (0: all usable cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--case", metavar="JSON", help=argparse.SUPPRESS)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Measures and prints the table; returns the exit code."""
    if options.case:
        figures = measure(Case(**json.loads(options.case)), options.repeats, options.engine, options.threads)
        print(json.dumps(figures))
        return 0
    rows = []
    print(HEADER, flush=True)
    for case in SCALING if options.scaling else CASES:
        command = [sys.executable, "-m", "nanoegg_mlx.bench", "--case", json.dumps(asdict(case))]
        command += ["--repeats", str(options.repeats), "--engine", options.engine, "--threads", str(options.threads)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(row)
        print(line(row), flush=True)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m nanoegg_mlx.bench")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
