"""`nanoegg train`: pretrains a model in a new run, a resumed one, or a branch of one."""

from __future__ import annotations

import argparse
import dataclasses
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanoegg_mlx.commands.options import Help, add_config_options, given_config
from nanoegg_mlx.config import Config
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.baselines import BASELINES
from nanoegg_mlx.ranks.join import join
from nanoegg_mlx.ranks.world import TIMEOUT
from nanoegg_mlx.show import tracking
from nanoegg_mlx.show.display import Display
from nanoegg_mlx.training.launch import BranchedRun, NewRun, Origin, ResumedRun, launch
from nanoegg_mlx.training.recorder import Observe, Observer, Outcome

HELP = "pretrain a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg train`."""
    parser.formatter_class = Help
    parser.description = "Trains a model into a new folder under --checkpoints; every key of the config is an option."
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", metavar="RUN", help="continue the run in this folder, bit for bit")
    start.add_argument("--branch", metavar="RUN@E", help="begin a new run with the parameters of RUN after E epochs")
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        choices=sorted(tracking.TRACKERS),
        help="also log the run to this service; may be given twice, and again with --resume",
    )
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Trains. Returns 0 also after SIGTERM, 130 after Ctrl-C; 0 on the ranks other than 0."""
    given = given_config(options)
    timeout = given.get("timeout")
    world = join(timeout if isinstance(timeout, float) else TIMEOUT)
    origin = world.run_on_all(lambda: _origin(options, given), "all ranks to read their configuration")
    outcome = launch(origin, world, observers(options.track))
    if outcome is None:
        return 0
    print(_summary(outcome))
    return 130 if outcome.stopped == signal.SIGINT else 0


def observers(track: Sequence[str]) -> Observe:
    """The progress display, and logging to the trackers of these names."""

    def observe(folder: Path, config: Config, epoch: int) -> Sequence[Observer]:
        display = Display(config, epoch)
        return display, tracking.Tracking(track, folder, config, epoch, display.message)

    return observe


def _origin(options: argparse.Namespace, given: Mapping[str, Any]) -> Origin:
    """The start that the options select; raises InputError for a bad value."""
    tracking.need(options.track)
    changes = given
    if options.config:
        changes = dataclasses.asdict(Config.from_toml(options.config, **given))
    if options.resume:
        return ResumedRun(Path(options.resume), changes)
    if options.branch:
        source, _, epochs = options.branch.rpartition("@")
        if not source or not epochs.isdecimal() or int(epochs) < 1:
            raise InputError(f"--branch is {options.branch!r}; it must be a run's folder, '@' and an epoch.")
        return BranchedRun(Path(source), int(epochs), changes)
    return NewRun(Config(**changes))


def _summary(outcome: Outcome) -> str:
    """The end of the run, and a table of its validations beside baselines of the validation bytes."""
    lines = [f"{outcome.trained} epochs in {outcome.seconds:,.1f} s; checkpoint {outcome.folder / 'latest'}"]
    if outcome.stopped:
        lines.append(
            f"Stopped by {outcome.stopped.name} after epoch {outcome.epoch} of {outcome.num_epochs}; "
            f"`nanoegg train --resume {outcome.folder}` continues."
        )
    rows = {f"after {line['epoch']} epochs": line["validation"] for line in outcome.validations}
    rows |= {name: BASELINES[name](outcome.valid_tokens) for name in ("unigram", "bigram", "gzip")}
    lines.append("Bits per byte of the validation set:")
    return "\n".join([*lines, *(f"  {name:<18} {value:7.4f}" for name, value in rows.items())])
