"""Tracked runs, read back from the trackers' own files; and trackers that fail while training continues."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

from nanoegg_mlx.cli import main
from nanoegg_mlx.show import tracking
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.metrics import WEIGHT_EDGES, read_metrics
from tests.tiny import resume, tiny_config, tiny_run


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and only these settings."""
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: 7 bytes, then LevelDB's log format."""
    content = file.read_bytes()
    assert content.startswith(b":W&B")
    at, whole = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        if at + 7 + size > len(content):
            return  # still being written
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a full record, or the last part of one
            record = WandbRecord()
            record.ParseFromString(whole)
            whole = b""
            yield record


def whole_wandb_records(file: Path) -> list[Any]:
    """The records of a tracked run that has ended: wandb's own process writes the last of them a moment later."""
    deadline = time.monotonic() + 30
    while True:
        records = list(wandb_records(file))
        if any(record.WhichOneof("record_type") == "exit" for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.05)


def wandb_history(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """All steps of a run's offline files, in the order of writing, and their values."""
    steps = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in whole_wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                values: dict[str, Any] = {}
                for item in record.history.item:
                    at = values
                    *path, last = item.nested_key or [item.key]
                    for name in path:
                        at = at.setdefault(name, {})
                    at[last] = json.loads(item.value_json)
                steps.append((record.history.step.num, values))
    return steps


def events(folder: Path) -> EventAccumulator:
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    read.Reload()
    return read


def numbers(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in ("epoch", "weights") and value is not None}


def crash(folder: Path) -> None:
    """Removes the last checkpoint, as after a crash between two checkpoints."""
    checkpoint.remove(folder / "epoch-00000012")


def test_tensorboard(tmp_path: Path) -> None:
    folder = tiny_run(tmp_path, ("tensorboard",))
    crash(folder)
    resume(folder, {"num_epochs": 14}, track=("tensorboard",))
    lines = read_metrics(folder / "metrics.jsonl")
    read = events(folder)
    assert len(list((folder / "tensorboard").iterdir())) == 2
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in numbers(line).items():
            expected.setdefault(name, []).append((line["epoch"], np.float32(value)))
    assert set(read.Tags()["scalars"]) == set(expected) and len(expected) == 20
    for name, points in expected.items():
        assert [(event.step, event.value) for event in read.Scalars(name)] == points
    histograms = read.Histograms("weights")
    validated = [line for line in lines if "weights" in line]
    # The crash removed the checkpoint of epoch 12; its validation at the end of the first run is cut off.
    assert [event.step for event in histograms] == [line["epoch"] for line in validated] == [0, 5, 10, 14]
    for event, line in zip(histograms, validated, strict=True):
        value = event.histogram_value
        assert value.bucket == line["weights"] and value.num == sum(line["weights"])
        assert value.bucket_limit == (WEIGHT_EDGES[1:] - 0.5).tolist()
        assert value.min >= -127 and value.max <= 127


def test_wandb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_run(tmp_path, ("wandb",))
    state = json.loads((folder / "wandb.json").read_text())
    assert state["epochs"] == 12 and f"wandb: {folder}/wandb" in capsys.readouterr().err
    before = read_metrics(folder / "metrics.jsonl")
    crash(folder)
    resume(folder, {"num_epochs": 14}, track=("wandb",))
    assert json.loads((folder / "wandb.json").read_text()) == {"id": state["id"], "epochs": 14}
    files = sorted(folder.glob("wandb/offline-run-*"))
    # offline-run-TIME-ID, with a number at its end if both runs began in one second.
    assert [path.name.split("-")[3] for path in files] == [state["id"]] * 2
    lines = before + read_metrics(folder / "metrics.jsonl")[13:]
    history = wandb_history(folder)
    assert [step for step, _ in history] == [line["epoch"] for line in lines] == list(range(15))
    for (_, values), line in zip(history, lines, strict=True):
        assert {name: values[name] for name in numbers(line)} == numbers(line)
        if "weights" in line:
            assert values["weights"]["values"] == line["weights"]
            assert values["weights"]["bins"] == (WEIGHT_EDGES - 0.5).tolist()
    [begun] = [r.run for r in wandb_records(next(files[0].glob("*.wandb"))) if r.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.project, begun.display_name) == ("nanoegg-mlx", "t")
    assert (config["population"], config["seed"], config["alpha"]) == (16, 0, 4.0)


class Served:
    """The result of wandb.init for a run of which the server has the steps up to `step` - 1."""

    def __init__(self, step: int) -> None:
        self.step, self.resumed, self.offline, self.url = step, True, False, "the server's address"
        self.steps: list[int] = []

    def log(self, values: dict[str, Any], step: int) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        self.steps.append(-1)


@pytest.mark.parametrize(("step", "expected"), [(7, [7, 8, 9, 10, 11, 12]), (13, []), (11, [11, 12])])
def test_wandb_server_decides_what_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, expected: list[int]
) -> None:
    """After a crash, lost steps are logged again and steps that arrived are not."""
    folder = tiny_run(tmp_path)
    lines = read_metrics(folder / "metrics.jsonl")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:9]))  # the checkpoint
    served = Served(step)
    options: dict[str, Any] = {}

    def init(**given: Any) -> Served:
        options.update(given)
        return served

    monkeypatch.setattr(wandb, "init", init)
    (folder / "wandb.json").write_text('{"id": "abc", "epochs": 12}')
    messages: list[str] = []
    tracked = tracking.Tracking(["wandb"], folder, tiny_config(tmp_path), 8, messages.append)
    tracked.message("not logged")
    for line in lines[9:]:
        tracked.record(line)
    tracked.close()
    assert served.steps == [*expected, -1]
    assert (options["id"], options["resume"], options["name"]) == ("abc", "allow", "t")
    assert messages == ["wandb: the server's address"]


def test_both_at_once_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text(tiny_config(tmp_path, num_epochs=3).to_toml())
    assert main(["train", f"--config={tmp_path}/c.toml", "--track=wandb", "--track=tensorboard"]) == 0
    folder = tmp_path / "runs" / "t"
    assert [event.step for event in events(folder).Scalars("loss_mean")] == [1, 2, 3]
    assert [step for step, _ in wandb_history(folder)] == [0, 1, 2, 3]
    err = capsys.readouterr().err
    assert f"tensorboard: {folder}/tensorboard" in err and "warning" not in err.lower()
    # A branch is a separate run.
    assert main(["train", f"--branch={folder}@3", "--name=b", "--num-epochs=5", "--track=tensorboard"]) == 0
    assert [event.step for event in events(tmp_path / "runs" / "b").Scalars("loss_mean")] == [4, 5]


@pytest.mark.parametrize("when", ["start", "middle", "end"])
def test_training_continues_without_a_failing_tracker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    calls = 0

    def failing(self: Any, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if when != "middle" or calls > 5:
            raise ConnectionError("the network is down.\nand more")

    method = {"start": "__init__", "middle": "add_event", "end": "close"}[when]
    monkeypatch.setattr(EventFileWriter, method, failing)
    monkeypatch.setattr(EventFileWriter, "flush", lambda self: None)
    folder = tiny_run(tmp_path, ("tensorboard",))
    warnings = [text for text in capsys.readouterr().err.splitlines() if text.startswith("warning")]
    assert warnings == ["warning: logging to tensorboard stopped (the network is down); training continues."]
    assert calls == {"start": 1, "middle": 6, "end": 1}[when]
    assert [line["epoch"] for line in read_metrics(folder / "metrics.jsonl")] == list(range(13))
    assert checkpoint.load(folder).epoch == 12


def test_an_incomplete_state_starts_a_new_tracked_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(0)
    served.resumed = False
    monkeypatch.setattr(wandb, "init", lambda **options: served)
    (tmp_path / "wandb.json").write_text('{"id": "abc", "ep')
    tracked = tracking.Tracking(["wandb"], tmp_path, tiny_config(tmp_path), 0, lambda text: None)
    tracked.record({"epoch": 0, "tokens": 0})
    tracked.close()
    known = json.loads((tmp_path / "wandb.json").read_text())
    assert known["id"] != "abc" and len(known["id"]) == 8 and known["epochs"] == 0 and served.steps == [0, -1]


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(tiny_config(tmp_path).to_toml())
    for name in ("wandb", "tensorboard"):
        monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: None)
        assert main(["train", f"--config={tmp_path}/c.toml", f"--track={name}"]) == 2
        assert f"`pip install 'nanoegg-mlx[{name}]'`" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main(["train", "--track=other"]) == 2
    assert "--track: invalid choice: 'other'" in capsys.readouterr().err


def test_an_untracked_run_imports_no_tracker(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(tiny_config(tmp_path, num_epochs=1).to_toml())
    script = (
        "import sys; from nanoegg_mlx.cli import main\n"
        f"assert main(['train', '--config={tmp_path}/c.toml']) == 0\n"
        "print([name for name in ('wandb', 'tensorboard', 'matplotlib') if name in sys.modules])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
