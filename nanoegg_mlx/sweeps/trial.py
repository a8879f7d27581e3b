"""A trial: ordinary runs, one for each seed, in folders of their own; interrupted ones continue, bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanoegg_mlx.config import Config
from nanoegg_mlx.measure.evaluate import evaluate
from nanoegg_mlx.show.tracking import Tracking
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.metrics import Record, iterate
from nanoegg_mlx.sweeps.ranges import Value
from nanoegg_mlx.sweeps.spec import Spec
from nanoegg_mlx.training.caches import Caches
from nanoegg_mlx.training.launch import NewRun, Origin, ResumedRun, launch
from nanoegg_mlx.training.recorder import Observer
from nanoegg_mlx.training.signals import StopSignals
from nanoegg_mlx.training.trainer import Trainer

if TYPE_CHECKING:
    from optuna.trial import Trial

EPOCHS = "num_epochs"
"""Attribute of a trial: its epochs, where the budget is in seconds."""


@dataclass(frozen=True)
class Workplace:
    """What a worker trains with."""

    folder: Path
    """The sweep's."""
    threads: int
    track: Sequence[str]
    """Names of trackers, as for `nanoegg train --track`."""
    stop: StopSignals
    """A signal that it has received ends the trial."""


@dataclass(frozen=True)
class Figure:
    """The end of a trial: a figure, pruned, or stopped by a signal."""

    bits_per_byte: float | None = None
    """Of the last validation, the mean over the seeds."""
    pruned: bool = False
    stopped: signal.Signals | None = None


def train_trial(spec: Spec, trial: Trial, values: Mapping[str, Value], place: Workplace) -> Figure:
    """Trains a trial, or continues it from its newest checkpoints.

    Args:
        spec: the sweep.
        trial: receives the validations of the first seed, by which a pruner compares trials.
        values: of the fields with a range.
        place: of the worker, which must hold the claim on the trial.

    Raises:
        InputError, OSError: as `launch` does; the trial can be continued.
    """
    figures = []
    config = _config(spec, trial, values, place)
    for seed in range(spec.seeds):
        own = config.replace(seed=config.seed + seed, name=spec.run_name(trial.number, seed))
        figure = _train_run(spec, trial if seed == 0 else None, own, place)
        if figure.bits_per_byte is None:
            return figure
        figures.append(figure.bits_per_byte)
    return Figure(sum(figures) / len(figures))


def _config(spec: Spec, trial: Trial, values: Mapping[str, Value], place: Workplace) -> Config:
    """The config of the trial's runs; measures the epochs of a budget in seconds, once."""
    here = {"checkpoints": str(place.folder), "keep": 1, "threads": place.threads}
    if spec.budget != "seconds":
        return spec.config(values).replace(**here)
    if EPOCHS not in trial.user_attrs:
        config = spec.config(values, epochs=1).replace(**here)
        trial.set_user_attr(EPOCHS, measured_epochs(config, spec.amount, spec.validations))
    return spec.config(values, epochs=trial.user_attrs[EPOCHS]).replace(**here)


def measured_epochs(config: Config, seconds: float, validations: int) -> int:
    """The epochs that fit into a time beside the validations, at least 1, by measuring the first ones.

    Args:
        config: of the run; its threads are those of the measurement.
        seconds: of training and validation. The measurement takes a fiftieth, or two epochs.
        validations: in that time.
    """
    caches = Caches(config)
    trainer = Trainer(config, caches.train)
    trainer.step()  # the first one compiles
    started = time.perf_counter()
    evaluate(trainer.params, caches.valid, config)
    validated = time.perf_counter()
    while (spent := time.perf_counter() - validated) < seconds / 50 or trainer.epoch < 2:
        trainer.step()
    epoch = spent / (trainer.epoch - 1)
    return max(1, int((seconds - (validations + 1) * (validated - started)) / epoch))


def _train_run(spec: Spec, trial: Trial | None, config: Config, place: Workplace) -> Figure:
    """Trains one run up to its last epoch; `trial`, if given, may be pruned."""
    folder = Path(config.checkpoints) / config.name
    watch = _Watch(spec, trial, config, place.stop)
    if watch.judged_before(folder):
        return Figure(pruned=True)

    def observe(folder: Path, config: Config, epoch: int) -> Sequence[Observer]:
        return watch, Tracking(place.track, folder, config, epoch, print)

    if place.stop.received:
        return Figure(stopped=place.stop.received)
    outcome = launch(_origin(folder, config), observe=observe)
    assert outcome is not None
    if watch.pruned or outcome.epoch < config.num_epochs:
        return Figure(pruned=watch.pruned, stopped=None if watch.pruned else outcome.stopped)
    return Figure(outcome.validations[-1]["validation"])


def _origin(folder: Path, config: Config) -> Origin:
    """The run's beginning, or its newest checkpoint. The caller holds the claim on the trial."""
    if (folder / "config.toml").exists() or (folder.is_dir() and checkpoint.folders(folder)):
        return ResumedRun(folder, asdict(config))
    if folder.is_dir():
        # A kill before the first file: the lock, and perhaps a file that has not got its name.
        checkpoint.remove_leftovers(folder)
        (folder / ".lock").unlink(missing_ok=True)
        folder.rmdir()
    return NewRun(config)


class _Watch:
    """Observes a run: reports validations to the trial, and requests the end of a run that is not worth its budget."""

    def __init__(self, spec: Spec, trial: Trial | None, config: Config, stop: StopSignals) -> None:
        self._spec, self._trial, self._config, self._stop = spec, trial, config, stop
        self._reported = set(trial.study.trials[trial.number].intermediate_values) if trial else set()
        self.pruned = False

    def judged_before(self, folder: Path) -> bool:
        """Reports the validations of an interrupted run that a kill lost; returns whether the last one prunes it."""
        if self._trial is None or not (folder / "metrics.jsonl").exists():
            return False
        lines = [line for line in iterate(folder / "metrics.jsonl") if self._counts(line)]
        for line in lines:
            self._report(line)
        return bool(lines) and lines[-1]["epoch"] < self._config.num_epochs and self._trial.should_prune()

    def message(self, text: str) -> None:
        """Does nothing: a sweep prints one line for each trial."""

    def record(self, line: Record) -> None:
        """Receives a line of the metrics."""
        if self._trial and self._counts(line):
            self._report(line)
            self.pruned = line["epoch"] < self._config.num_epochs and self._trial.should_prune()
        if (self.pruned or self._stop.received) and callable(signal.getsignal(signal.SIGTERM)):
            # The run ends with a checkpoint, as it does on a signal from outside; after such a one it ends anyway.
            signal.raise_signal(self._stop.received or signal.SIGTERM)

    def close(self) -> None:
        """Does nothing."""

    def _counts(self, line: Record) -> bool:
        return line.get("validation") is not None and line["epoch"] > 0

    def _report(self, line: Record) -> None:
        step = self._spec.step(self._config, line["epoch"])
        if self._trial and step not in self._reported:
            self._reported.add(step)
            self._trial.report(line["validation"], step)
