"""`nanoegg sweep`: finds good settings by trials within one budget."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.show import tracking
from nanoegg_mlx.sweeps.report import write_report
from nanoegg_mlx.sweeps.spec import read_spec
from nanoegg_mlx.sweeps.study import need_optuna
from nanoegg_mlx.sweeps.workers import run_sweep

HELP = "find good settings by trials within one budget"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg sweep`."""
    parser.description = (
        "Trains the trials of a SWEEP.toml (docs/sweeps.md), each an ordinary run in the sweep's folder, with Optuna. "
        "The same command continues a sweep that has ended, and joins one in progress."
    )
    parser.add_argument("sweep", metavar="SWEEP.toml", help="base config, ranges, budget and number of trials")
    parser.add_argument("--folder", metavar="DIR", help="the sweep's folder (default: checkpoints/sweep-NAME)")
    parser.add_argument(
        "--storage", metavar="URL", help="Optuna storage, or the path of a journal (default: DIR/journal.log)"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share out the cores")
    parser.add_argument("--report", action="store_true", help="train nothing; write DIR/report.html, one offline page")
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        choices=sorted(tracking.TRACKERS),
        help="also log the runs to this service, as one group; may be given twice",
    )


def run(options: argparse.Namespace) -> int:
    """Trains, or writes the report. Returns 0 also after SIGTERM, 130 after Ctrl-C."""
    need_optuna()
    tracking.need(options.track)
    if options.workers < 1:
        raise InputError(f"--workers is {options.workers}; it must be at least 1.")
    spec = read_spec(options.sweep)
    folder = Path(options.folder) if options.folder else spec.default_folder()
    if options.report:
        print(write_report(spec, folder, options.storage))
        return 0
    stopped = run_sweep(spec, folder, options.storage, options.workers, options.track)
    if stopped:
        print(f"Stopped by {stopped.name}; the same command continues the sweep.")
    else:
        print(f"`nanoegg sweep {options.sweep} --report` draws the trials.")
    return 130 if stopped == signal.SIGINT else 0
