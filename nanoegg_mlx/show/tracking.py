"""A run followed in Weights & Biases or TensorBoard: what metrics.jsonl gets, they get too, under the same names.

The run's own files are the truth; a tracker is a guest. One that fails, at its start or in the middle of a run, is
dropped with one warning, and the run goes on. The step is `epoch`. A run that is resumed goes on in the same tracked
run, and an epoch that it does again after a crash is not there twice:

* TensorBoard writes a new event file into <run>/tensorboard, which opens with the mark that voids the steps after the
  checkpoint in the older files.
* Weights & Biases forgets nothing, so epochs that it has are left out, and those that it lost in a crash are told
  again. <run>/wandb.json keeps its run's id, and the epochs it was told of for runs without a network:
  `WANDB_MODE=offline` keeps it all in <run>/wandb, for `wandb sync`. There a kill (not a signal that a run heeds) costs
  the epochs that its own process had not written yet.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store.metrics import WEIGHT_EDGES, Record, iterate

_START_SECONDS = 30.0
"""How long a run that begins waits for an answer."""

_FINISH_SECONDS = 60.0
"""How long a run that has ended waits for uploads; what is left can be uploaded with `wandb sync`."""


class Tracker(Protocol):
    """One place that a run is followed in."""

    place: str
    """Where to look: a folder or an address."""

    def log(self, line: Record) -> None:
        """Takes a line of the metrics."""

    def close(self) -> None:
        """Waits until all is written."""


class TensorBoard:
    """Event files in <run>/tensorboard."""

    def __init__(self, folder: Path, config: Config, epochs: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.place = str(folder / "tensorboard")
        self._writer = EventFileWriter(self.place)
        if epochs:
            started = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=epochs + 1, session_log=started))

    def log(self, line: Record) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in _numbers(line).items()]
        if "weights" in line:
            values.append(Summary.Value(tag="weights", histo=self._histogram(line["weights"])))
        self._writer.add_event(Event(wall_time=time.time(), step=line["epoch"], summary=Summary(value=values)))
        self._writer.flush()  # a kill loses nothing

    def close(self) -> None:
        self._writer.close()

    @staticmethod
    def _histogram(counts: Sequence[int]) -> Any:
        from tensorboard.compat.proto.histogram_pb2 import HistogramProto

        count = np.array(counts, np.float64)
        middle = (WEIGHT_EDGES[:-1] + WEIGHT_EDGES[1:] - 1) / 2
        there = np.flatnonzero(count)
        return HistogramProto(
            min=WEIGHT_EDGES[there[0]],
            max=WEIGHT_EDGES[there[-1] + 1] - 1,
            num=count.sum(),
            sum=count @ middle,
            sum_squares=count @ middle**2,
            bucket_limit=WEIGHT_EDGES[1:] - 0.5,
            bucket=count,
        )


class Wandb:
    """A Weights & Biases run; WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE are heeded."""

    def __init__(self, folder: Path, config: Config, epochs: int) -> None:
        import wandb

        self._state = os.open(folder / "wandb.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            known = json.loads(os.pread(self._state, 1000, 0))
            self._id, self._told = str(known["id"]), int(known["epochs"])
        except (ValueError, KeyError, TypeError):  # a new file, or one that was not written whole
            self._id, self._told = secrets.token_hex(4), -1
        self._run = wandb.init(
            dir=str(folder),
            project=os.environ.get("WANDB_PROJECT", "nanoegg-mlx"),
            name=folder.resolve().name,
            id=self._id,
            resume="allow",
            config=asdict(config),
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=_START_SECONDS, finish_timeout=_FINISH_SECONDS
            ),
        )
        self.place = str(folder / "wandb") if self._run.offline else str(self._run.url)
        if self._run.resumed:  # the server knows best what has arrived; what a crash has kept back follows now
            self._told = self._run.step - 1
            for line in iterate(folder / "metrics.jsonl"):
                self.log(line)
        self._note(self._told)

    def log(self, line: Record) -> None:
        import wandb

        if line["epoch"] <= self._told:
            return
        told: dict[str, Any] = dict(_numbers(line))
        if "weights" in line:
            told["weights"] = wandb.Histogram(np_histogram=(np.array(line["weights"]), WEIGHT_EDGES - 0.5))
        self._run.log(told, step=line["epoch"])
        self._note(line["epoch"])

    def close(self) -> None:
        os.close(self._state)
        self._run.finish()

    def _note(self, epochs: int) -> None:
        """Notes what was told, in one write of always the same length."""
        self._told = epochs
        os.pwrite(self._state, f'{{"id": {json.dumps(self._id)}, "epochs": {epochs:>20}}}\n'.encode(), 0)


TRACKERS: dict[str, Callable[[Path, Config, int], Tracker]] = {"wandb": Wandb, "tensorboard": TensorBoard}


class Tracking:
    """All trackers of a run."""

    def __init__(
        self, names: Sequence[str], folder: Path, config: Config, epochs: int, say: Callable[[str], object]
    ) -> None:
        """Starts the trackers.

        Args:
            names: of TRACKERS.
            folder: the run's.
            config: the run's.
            epochs: done; the next line to come is of the one after, or of 0.
            say: is told where each tracker is, and in a sentence of each that fails.
        """
        self._say = say
        self._trackers: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            try:
                self._trackers[name] = TRACKERS[name](folder, config, epochs)
                say(f"{name}: {self._trackers[name].place}")
            except Exception as error:
                self._failed(name, error)

    def message(self, text: str) -> None:
        pass

    def record(self, line: Record) -> None:
        """Tells all trackers a line of the metrics."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(line)
            except Exception as error:
                del self._trackers[name]
                self._failed(name, error)

    def close(self) -> None:
        """Ends the tracking."""
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:
                self._failed(name, error)
        self._trackers.clear()

    def _failed(self, name: str, error: Exception) -> None:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        self._say(f"warning: {name} is not told of this run any more ({reason}); the run goes on.")


def need(names: Sequence[str]) -> None:
    """Raises InputError, naming the extra, where a tracker's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--track {name} needs the package {name}: `pip install 'nanoegg-mlx[{name}]'`.")


def _numbers(line: Record) -> dict[str, float]:
    """The line's numbers but the epoch, which is the step."""
    return {name: value for name, value in line.items() if isinstance(value, int | float) and name != "epoch"}
