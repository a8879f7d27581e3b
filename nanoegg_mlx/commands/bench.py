"""`nanoegg bench`: a table of throughput. Each case runs in a separate process, since resident memory is a figure."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nanoegg_mlx.commands.options import add_engine_options
from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import init_params
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure import bench
from nanoegg_mlx.measure.evaluate import validate
from nanoegg_mlx.training.trainer import Trainer

HELP = "tokens per second, beside the machine's int8 peak"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command and of benchmarks/throughput.py."""
    parser.description = (
        "Tokens per second of whole epochs, of validation and of compression, beside the machine's int8 peak."
    )
    parser.add_argument(
        "--scaling", action="store_true", help="population, tokens and layers, instead of the main cases"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="epochs a case, medians count (default: 5)")
    add_engine_options(parser)
    parser.add_argument(
        "--reference-command",
        metavar="COMMAND",
        help="shell command that times another implementation, such as the published reference, on every training "
        "case; the case's numbers replace {n_layer}, {n_embd}, {population} and {tokens} in it, and its last line of "
        "output must be a JSON object with tokens_per_second",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--case", metavar="JSON", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Measures the cases and prints the table."""
    if options.case:
        print(json.dumps(measure_here(bench.Case(**json.loads(options.case)), options)))
        return 0
    if options.repeats < 1:
        raise InputError(f"--repeats is {options.repeats}; it must be at least 1.")
    if options.json and not options.json.parent.is_dir():
        raise InputError(f"--json is {options.json}; it must be a file in an existing folder.")
    rows = []
    print(bench.HEADER, flush=True)
    for case in bench.SCALING if options.scaling else bench.CASES:
        reference = None
        if options.reference_command and not case.validation and not case.coding:
            reference = bench.reference_rate(options.reference_command, case)
        measured = _measure_in_process(case, options)
        if measured.returncode:  # the process has printed its error
            return measured.returncode
        row = json.loads(measured.stdout)
        rows.append(row)
        print(bench.line(row), flush=True)
        if (times := bench.times_weights(row, rows)) is not None:
            row["times_weights"] = times
            print(bench.weights_line(row), flush=True)
        if case.coding:
            row["times_validation"] = bench.times_validation(row, rows)
            print(bench.coding_line(row), flush=True)
        if reference:
            row["reference_tokens_per_second"] = reference
            row["times_reference"] = row["tokens_per_second"] / reference
            print(bench.reference_line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def measure_here(case: bench.Case, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one case in this process; returns the figures of `bench.measure`."""
    config = case.config(options.engine, options.threads)
    tokens = case.text(config)
    if case.coding:
        epoch = _coding(tokens, config, case.coding == "decode")
    else:
        epoch = _validation(tokens, config) if case.validation else _training(tokens, config)
    return bench.measure(case, epoch, config, options.repeats)


def _training(tokens: np.ndarray, config: Config) -> Callable[[], float]:
    trainer = Trainer(config, tokens)

    def epoch() -> float:
        result = trainer.step()
        return result.update_seconds / (result.generate_seconds + result.update_seconds)

    return epoch


def _validation(tokens: np.ndarray, config: Config) -> Callable[[], float]:
    params = init_params(config)

    def epoch() -> float:
        validate(params, tokens, config)
        return 0.0

    return epoch


def _coding(tokens: np.ndarray, config: Config, decodes: bool) -> Callable[[], float]:
    params, engine = init_params(config), make_engine(config)
    lanes = [bytes(row[1:]) for row in tokens.reshape(config.population, -1)]
    streams = engine.encode(params, lanes)
    sizes = [len(lane) for lane in lanes]

    def epoch() -> float:
        if decodes:
            engine.decode(params, streams, sizes)
        else:
            engine.encode(params, lanes)
        return 0.0

    return epoch


def _measure_in_process(case: bench.Case, options: argparse.Namespace) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nanoegg_mlx.cli", "bench", "--case", json.dumps(asdict(case))]
    command += ["--repeats", str(options.repeats), "--engine", options.engine, "--threads", str(options.threads)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True)
