"""Records a run on rank 0: fitness log, metrics, checkpoints, and the observers that show it.

The order of writing makes a run exact: an epoch's fitness and its line of metrics are appended before the checkpoint
that includes the epoch, so that after a crash both can be truncated to the checkpoint that is resumed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.engines import missed_speed
from nanoegg_mlx.engines.machine import machine
from nanoegg_mlx.measure.evaluate import Evaluation
from nanoegg_mlx.measure.sample import generate, text_of
from nanoegg_mlx.store import checkpoint, metrics
from nanoegg_mlx.store.durable import AppendOnly, write_file
from nanoegg_mlx.store.fitness_log import epoch_frame
from nanoegg_mlx.store.metrics import Record
from nanoegg_mlx.training.caches import Caches
from nanoegg_mlx.training.trainer import EpochResult, Trainer


class Observer(Protocol):
    """Follows a run while it trains: a progress display, a tracking service."""

    def message(self, text: str) -> None:
        """Receives a line of text for the user."""

    def record(self, line: Record) -> None:
        """Receives a line of the metrics."""

    def close(self) -> None:
        """Ends the observation."""


Observe = Callable[[Path, Config, int], Sequence[Observer]]
"""Makes the observers of a run from its folder, config and epochs done."""


def unobserved(folder: Path, config: Config, epoch: int) -> Sequence[Observer]:
    """No observers."""
    return ()


@dataclass(frozen=True)
class Outcome:
    """The end of a run, or of this process's part of it."""

    folder: Path
    epoch: int
    """Epochs done."""
    num_epochs: int
    """Epochs planned."""
    trained: int
    """Epochs done by this process."""
    seconds: float
    """Of this process."""
    stopped: signal.Signals | None
    """The signal that ended the run before its last epoch."""
    validations: Sequence[Record]
    """The first and the last line of the metrics with a validation."""
    valid_tokens: np.ndarray
    """(size,) uint8, the validation cache."""


class NullRecorder:
    """The recorder of the ranks other than 0, which record nothing."""

    def begun(self) -> tuple[bool, bool]:
        return False, False

    def record_fitness(self, result: EpochResult) -> None:
        pass

    def record_metrics(self, result: EpochResult | None, validation: Evaluation | None) -> None:
        pass

    def save(self, states: np.ndarray | None) -> None:
        pass

    def outcome(self, stopped: signal.Signals | None) -> Outcome | None:
        return None

    def close(self) -> None:
        pass


class Recorder(NullRecorder):
    """The recorder of rank 0."""

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        caches: Caches,
        fitness_log: AppendOnly,
        info: Mapping[str, Any],
        observe: Observe,
    ) -> None:
        """Opens metrics.jsonl and starts the observers.

        Args:
            folder: the run's.
            trainer: with the state that the run begins from.
            fitness_log: the run's, positioned at the trainer's epoch.
            info: checkpoint.json of the checkpoint that the run continues from, or empty.
        """
        self.folder, self._trainer, self._caches, self._fitness_log = folder, trainer, caches, fitness_log
        self._config = trainer.config
        self._metrics = metrics.MetricsFile(folder / "metrics.jsonl", trainer.epoch)
        last = self._metrics.last or {}
        self._tokens = int(info.get("tokens", last.get("tokens", 0)))
        self._seconds_before = float(info.get("seconds", last.get("seconds", 0.0)))
        self._sent = trainer.world.sent
        self._data = caches.identity()
        self._first_epoch = trainer.epoch
        self._started = time.perf_counter()
        self._observers = observe(folder, self._config, trainer.epoch)
        self._announce()

    def begun(self) -> tuple[bool, bool]:
        """Whether the run is at its very beginning, and whether it has a checkpoint."""
        return not self._metrics.last and self._trainer.epoch == 0, bool(checkpoint.folders(self.folder))

    def record_fitness(self, result: EpochResult) -> None:
        """Appends an epoch's fitness, before the epoch becomes the trainer's state."""
        self._tokens += result.tokens
        self._fitness_log.append(epoch_frame(self._config, result.epoch, result.fitness))

    def record_metrics(self, result: EpochResult | None, validation: Evaluation | None) -> None:
        """Appends the line of the trainer's present state to the metrics, and passes it to the observers."""
        line = metrics.record(
            self._trainer.epoch,
            self._tokens,
            result.figures() if result else {},
            validation.bits_per_byte if validation else None,
            validation.exact_bits_per_byte if validation else None,
        )
        sent, self._sent = self._sent, self._trainer.world.sent
        line |= {"seconds": self._seconds(), "rss_mb": metrics.resident_mb(), "wire_bytes": self._sent - sent}
        if validation is not None:
            line["weights"] = metrics.weight_histogram(self._config, self._trainer.model)
            if self._config.sample_bytes:
                line["sample"] = self._sample()
        self._metrics.append(line)
        if "engines" in line and not line["engines"]["cached"]:
            self._message("engine {chosen} (tokens/s: cpu {cpu:,.0f}, mlx {mlx:,.0f})".format(**line["engines"]))
        for observer in self._observers:
            try:
                observer.record(line)
            except BrokenPipeError:
                # The output has no reader: most likely the launcher died and did not end its ranks. Request an end.
                sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
                signal.raise_signal(signal.SIGTERM)

    def save(self, states: np.ndarray | None) -> None:
        """Writes a checkpoint, after the files that it depends on are on disk; states: (N, L, D) int8."""
        assert states is not None
        self._fitness_log.sync()
        self._metrics.sync()
        trainer, last = self._trainer, self._metrics.last or {}
        figures = last if last.get("epoch") == trainer.epoch else {}
        info = {
            "tokens": self._tokens,
            "seconds": self._seconds(),
            "validation": figures.get("validation"),
            "validation_exact": figures.get("validation_exact"),
            "engine": trainer.engine.name,
            "machine": machine(),
            "data": self._data,
        }
        checkpoint.save(
            self.folder,
            params=trainer.model,
            average=None if trainer.sums is None else (trainer.params, trainer.sums),
            states=states,
            epoch=trainer.epoch,
            config=self._config,
            info=info,
        )
        if not (self.folder / "config.toml").exists():
            # A branch writes it here. A folder with a config.toml can be resumed, and without a checkpoint that would
            # start from the seed instead of the branch's parameters.
            write_file(self.folder / "config.toml", self._config.to_toml().encode())

    def outcome(self, stopped: signal.Signals | None) -> Outcome:
        return Outcome(
            self.folder,
            self._trainer.epoch,
            self._config.num_epochs,
            self._trainer.epoch - self._first_epoch,
            time.perf_counter() - self._started,
            stopped,
            self._metrics.validations,
            self._caches.valid,
        )

    def close(self) -> None:
        """Closes the files and ends the observation; if one fails, the others are closed all the same."""
        with ExitStack() as closing:
            for observer in reversed(self._observers):
                closing.callback(observer.close)
            closing.callback(self._metrics.close)
            closing.callback(self._fitness_log.close)

    def _announce(self) -> None:
        config, ranks = self._config, self._trainer.world.size
        self._message(
            f"{self.folder}: {config.n_layer} layer{'s' * (config.n_layer > 1)}, {config.n_embd} wide, "
            f"population {config.population}, epochs {self._trainer.epoch} to {config.num_epochs} of "
            f"{config.population * config.tokens_per_update:,} tokens, engine {self._trainer.engine.name}"
            + (f", {ranks} processes" if ranks > 1 else "")
        )
        if note := missed_speed(config):
            self._message(note)

    def _message(self, text: str) -> None:
        for observer in self._observers:
            observer.message(text)

    def _seconds(self) -> float:
        """Training time of the run so far."""
        return self._seconds_before + time.perf_counter() - self._started

    def _sample(self) -> str:
        """Text that the model generates at temperature 1, from the same draws at every validation."""
        config, engine = self._config, self._trainer.engine
        return text_of(generate(self._trainer.model, config, tokens=config.sample_bytes, engine=engine))
