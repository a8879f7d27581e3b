"""Logs a run to Weights & Biases or TensorBoard: the numbers of metrics.jsonl under the same names.

The files of the run are authoritative. If a tracker fails, at its start or later, its logging stops with one warning
and training continues. The step is `epoch`. A resumed run continues the same tracked run, and an epoch that is repeated
after a crash appears once:

* TensorBoard: a new event file in <run>/tensorboard starts with a mark that invalidates the steps after the checkpoint
  in the older files.
* Weights & Biases cannot remove steps. Epochs that it has are skipped; epochs that it lost in a crash are logged again.
  <run>/wandb.json has the id of its run. For runs without a network it also has the last epoch logged:
  `WANDB_MODE=offline` writes to <run>/wandb, for `wandb sync`. In this mode SIGKILL loses the epochs that wandb's
  process has not written yet.
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
"""Timeout for the server when a run begins."""

_FINISH_SECONDS = 60.0
"""Timeout for uploads when a run has ended; `wandb sync` uploads the rest."""


class Tracker(Protocol):
    """One service that a run is logged to."""

    place: str
    """The folder or the address that shows the run."""

    def log(self, line: Record) -> None:
        """Logs a line of the metrics."""

    def close(self) -> None:
        """Waits until all lines are written."""


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
        self._writer.flush()  # the line survives SIGKILL

    def close(self) -> None:
        self._writer.close()

    @staticmethod
    def _histogram(counts: Sequence[int]) -> Any:
        from tensorboard.compat.proto.histogram_pb2 import HistogramProto

        count = np.array(counts, np.float64)
        middle = (WEIGHT_EDGES[:-1] + WEIGHT_EDGES[1:] - 1) / 2
        used = np.flatnonzero(count)
        return HistogramProto(
            min=WEIGHT_EDGES[used[0]],
            max=WEIGHT_EDGES[used[-1] + 1] - 1,
            num=count.sum(),
            sum=count @ middle,
            sum_squares=count @ middle**2,
            bucket_limit=WEIGHT_EDGES[1:] - 0.5,
            bucket=count,
        )


class Wandb:
    """A Weights & Biases run. Reads WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE."""

    def __init__(self, folder: Path, config: Config, epochs: int) -> None:
        import wandb

        self._state = os.open(folder / "wandb.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            known = json.loads(os.pread(self._state, 1000, 0))
            self._id, self._logged = str(known["id"]), int(known["epochs"])
        except (ValueError, KeyError, TypeError, RecursionError):  # a new file, or an incomplete one
            self._id, self._logged = secrets.token_hex(4), -1
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
        if self._run.resumed:
            # The server's step decides: the local count may include epochs that a crash lost before the upload.
            self._logged = self._run.step - 1
            for line in iterate(folder / "metrics.jsonl"):
                self.log(line)
        self._save_state(self._logged)

    def log(self, line: Record) -> None:
        import wandb

        if line["epoch"] <= self._logged:
            return
        values: dict[str, Any] = dict(_numbers(line))
        if "weights" in line:
            values["weights"] = wandb.Histogram(np_histogram=(np.array(line["weights"]), WEIGHT_EDGES - 0.5))
        self._run.log(values, step=line["epoch"])
        self._save_state(line["epoch"])

    def close(self) -> None:
        os.close(self._state)
        self._run.finish()

    def _save_state(self, epochs: int) -> None:
        """Saves the last epoch logged. One write of constant length: a crash cannot leave a mixture of old and new."""
        self._logged = epochs
        os.pwrite(self._state, f'{{"id": {json.dumps(self._id)}, "epochs": {epochs:>20}}}\n'.encode(), 0)


TRACKERS: dict[str, Callable[[Path, Config, int], Tracker]] = {"wandb": Wandb, "tensorboard": TensorBoard}


class Tracking:
    """All trackers of a run. Their failures do not reach the caller."""

    def __init__(
        self, names: Sequence[str], folder: Path, config: Config, epochs: int, message: Callable[[str], object]
    ) -> None:
        """Starts the trackers.

        Args:
            names: keys of TRACKERS.
            folder: the folder of the run.
            config: the config of the run.
            epochs: epochs done; the next line is that of the following epoch, or of epoch 0.
            message: receives a line with the place of each tracker, and a sentence for each failure.
        """
        self._notify = message
        self._trackers: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            try:
                self._trackers[name] = TRACKERS[name](folder, config, epochs)
                message(f"{name}: {self._trackers[name].place}")
            except Exception as error:
                self._failed(name, error)

    def message(self, text: str) -> None:
        """Does nothing: trackers log the metrics only."""

    def record(self, line: Record) -> None:
        """Logs a line of the metrics to all trackers."""
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
        self._notify(f"warning: logging to {name} stopped ({reason}); training continues.")


def need(names: Sequence[str]) -> None:
    """Raises InputError, with the name of the extra, if the package of a tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{name} is not installed; --track {name} needs it: `pip install 'nanoegg-mlx[{name}]'`.")


def _numbers(line: Record) -> dict[str, float]:
    """Returns the numbers of a line without the epoch, which is the step."""
    return {name: value for name, value in line.items() if isinstance(value, int | float) and name != "epoch"}
