"""What a run writes down of itself and shows: votes, metrics, checkpoints, the display, trackers, the summary."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.engines import missed_speed
from nanoegg_mlx.engines.machine import machine
from nanoegg_mlx.measure import baselines
from nanoegg_mlx.measure.evaluate import Evaluation
from nanoegg_mlx.measure.sample import generate, text_of
from nanoegg_mlx.show import display
from nanoegg_mlx.show.tracking import Tracking
from nanoegg_mlx.store import checkpoint, metrics
from nanoegg_mlx.store.durable import AppendOnly, sync_folder
from nanoegg_mlx.store.fitness_log import vote_frame
from nanoegg_mlx.training.caches import Corpus
from nanoegg_mlx.training.trainer import EpochResult, Trainer


class Books:
    """What rank 0 writes down of a run, and shows."""

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        corpus: Corpus,
        votes: AppendOnly,
        info: Mapping[str, Any],
        track: Sequence[str],
    ) -> None:
        self.folder, self.trainer, self.corpus, self.votes = folder, trainer, corpus, votes
        self.config = trainer.config
        self.metrics = metrics.MetricsFile(folder / "metrics.jsonl", trainer.epoch)
        last = self.metrics.last or {}
        self.tokens = int(info.get("tokens", last.get("tokens", 0)))
        self.seconds = float(info.get("seconds", last.get("seconds", 0.0)))
        self.sent = trainer.world.sent
        self.data = corpus.identity()
        self.display = display.Display(self.config, trainer.epoch)
        self.tracking = Tracking(track, folder, self.config, trainer.epoch, self.display.say)
        self.begin = trainer.epoch
        self.started = time.perf_counter()
        config, ranks = self.config, trainer.world.size
        self.display.say(
            f"{self.folder}: {config.n_layer} layer{'s' * (config.n_layer > 1)}, {config.n_embd} wide, "
            f"population {config.population}, epochs {trainer.epoch} to {config.num_epochs} of "
            f"{config.population * config.tokens_per_update:,} tokens, engine {trainer.engine.name}"
            + (f", {ranks} processes" if ranks > 1 else "")
        )
        if note := missed_speed(config):
            self.display.say(note)

    def begun(self) -> tuple[bool, bool]:
        """Whether the run is at its very beginning, and whether it has a checkpoint."""
        return not self.metrics.last and self.trainer.epoch == 0, bool(checkpoint.folders(self.folder))

    def vote(self, result: EpochResult) -> None:
        """Appends an epoch's vote, before the epoch is the trainer's state."""
        self.tokens += result.tokens
        self.votes.append(vote_frame(self.config, result.epoch, result.fitness))

    def log(self, result: EpochResult | None, validation: Evaluation | None) -> None:
        """Appends and shows the line of the metrics for the trainer's state."""
        line = metrics.record(self.trainer.epoch, self.tokens, result, validation)
        sent, self.sent = self.sent, self.trainer.world.sent
        seconds = self.seconds + time.perf_counter() - self.started
        line |= {"seconds": seconds, "rss_mb": metrics.resident_mb(), "wire_bytes": self.sent - sent}
        if line["validation"] is not None:
            line["weights"] = metrics.weight_histogram(self.config, self.trainer.params)
            if self.config.sample_bytes:
                line["sample"] = self._sample()
        self.metrics.append(line)
        try:
            self.display.epoch(line)
        except BrokenPipeError:
            # Who read this is gone: most likely a launcher that was told to end, and did not pass that on.
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            signal.raise_signal(signal.SIGTERM)
        self.tracking.log(line)

    def _sample(self) -> str:
        """What the model writes by itself at temperature 1: the same draws at every validation."""
        config, engine = self.config, self.trainer.engine
        return text_of(generate(self.trainer.params, config, tokens=config.sample_bytes, engine=engine))

    def save(self, states: np.ndarray | None) -> None:
        """Puts a checkpoint in place, after all that it stands on is on the disk; states: (N, L, D) int8."""
        self.votes.sync()
        self.metrics.sync()
        last = self.metrics.last or {}
        figures = last if last.get("epoch") == self.trainer.epoch else {}
        info = {
            "tokens": self.tokens,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "validation": figures.get("validation"),
            "validation_exact": figures.get("validation_exact"),
            "engine": self.trainer.engine.name,
            "machine": machine(),
            "data": self.data,
        }
        checkpoint.save(self.folder, self.trainer, info, states)

    def report(self, stopped: signal.Signals | None) -> None:
        """Tells how the run has ended."""
        epochs, trained = self.trainer.epoch, self.trainer.epoch - self.begin
        print(f"{trained} epochs in {time.perf_counter() - self.started:,.1f} s; checkpoint {self.folder / 'latest'}")
        if stopped:
            print(f"Stopped by {stopped.name} after epoch {epochs} of {self.config.num_epochs}; ", end="")
            print(f"`nanoegg train --resume {self.folder}` goes on.")
        print(summary(self.metrics.validations, self.corpus.valid))

    def close(self) -> None:
        """Closes the files and ends the display."""
        self.display.close()
        self.votes.close()
        self.metrics.close()
        self.tracking.close()


def new_folder(config: Config) -> Path:
    """Creates `<checkpoints>/<name>`, or with the first free number behind the name: no run is overwritten."""
    parent = Path(config.checkpoints)
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (config.name if number == 1 else f"{config.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        sync_folder(parent)
        return folder


def summary(validations: Sequence[metrics.Record], tokens: np.ndarray) -> str:
    """A table of some validations beside what the validation bytes' own statistics give."""
    rows = [(f"after {line['epoch']} epochs", line["validation"]) for line in validations]
    rows += [(name, baselines.BASELINES[name](tokens)) for name in ("unigram", "bigram", "gzip")]
    return "\n".join(
        ["Bits per byte of the validation set:", *[f"  {name:<18} {value:7.4f}" for name, value in dict(rows).items()]]
    )
