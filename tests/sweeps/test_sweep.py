"""Sweeps in progress: figures, grids, pruning, several processes, and kills at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from nanoegg_mlx import Config, InputError
from nanoegg_mlx.cli import main
from nanoegg_mlx.show import tracking
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.metrics import read_metrics
from nanoegg_mlx.sweeps import study as studies
from nanoegg_mlx.sweeps.spec import Spec, read_spec
from nanoegg_mlx.sweeps.study import Sweep, read_study
from nanoegg_mlx.sweeps.trial import Figure
from nanoegg_mlx.sweeps.workers import run_sweep
from tests.jobs import ROOT
from tests.sweeps.tiny import EPOCH, write_sweep
from tests.tiny import train, work_in

FOLDER = Path("sweep")
GRID = {"sampler": "grid", "trials": None, "ranges": {"alpha": {"choices": [0.5, 2.0]}, "rank": {"choices": [1, 2]}}}


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return work_in(tmp_path, monkeypatch)


def swept(**changes: Any) -> tuple[Spec, list[Any]]:
    """Runs a whole sweep in this process; returns it and its trials."""
    spec = read_spec(write_sweep(**changes))
    assert run_sweep(spec, FOLDER) is None
    return spec, read_study(spec, FOLDER).trials


def parameters(run: Path) -> dict[str, bytes]:
    return {name: np.array(value).tobytes() for name, value in checkpoint.load(run, pytest.fail).params.items()}


def validations(run: Path) -> list[tuple[int, float]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [(line["epoch"], line["validation"]) for line in lines if line["validation"] is not None]


def test_trials_are_ordinary_runs(capsys: pytest.CaptureFixture[str]) -> None:
    decay = {"low": 0.5, "high": 4.0, "times_epochs": True}
    spec, trials = swept(trials=3, ranges={"alpha": {"low": 1.5, "high": 4}, "alpha_decay_timestep": decay, "rank": 2})
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    for trial in trials:
        run = FOLDER / f"trial-{trial.number:04d}"
        config = checkpoint.load(run).config
        assert config == Config.from_toml(run / "config.toml")
        assert (config.alpha, config.rank, config.num_epochs) == (trial.params["alpha"], 2, 12)
        assert config.alpha_decay_timestep == round(12 * trial.params["alpha_decay_timestep"])
        curve = validations(run)
        assert [epoch for epoch, _ in curve] == [0, 3, 6, 9, 12] and trial.value == curve[-1][1]
        assert trial.intermediate_values == {epoch // 3: figure for epoch, figure in curve[1:]}
        train(config.replace(checkpoints="runs", name="alone"))
        assert parameters(run) == parameters(Path("runs/alone"))
        Path("runs").rename(f"runs-{trial.number}")
    assert len({trial.params["alpha"] for trial in trials}) == 3
    out = capsys.readouterr().out.splitlines()
    best = min(trials, key=lambda trial: trial.value)
    assert len(out) == 4 and f"(best {best.value:.4f}, trial {best.number})" in out[2]
    assert out[3].endswith(f"Best: {best.value:.4f} bits per byte, trial {best.number}: sweep/trial-000{best.number}")
    # The same command does nothing more; with more trials it goes on.
    before = (FOLDER / "journal.log").read_bytes()
    assert run_sweep(spec, FOLDER) is None and (FOLDER / "journal.log").read_bytes() == before
    again = Path("s.toml").read_text().replace("trials = 3", "trials = 4")
    Path("s.toml").write_text(again)
    assert main(["sweep", "s.toml", "--folder", str(FOLDER)]) == 0
    assert [trial.params for trial in read_study(spec, FOLDER).trials[:3]] == [trial.params for trial in trials]
    assert checkpoint.load(FOLDER / "trial-0003").epoch == 12


def test_several_seeds_give_the_mean() -> None:
    _, trials = swept(trials=1, seeds=2)
    ends = [validations(FOLDER / f"trial-0000-seed-{seed}")[-1][1] for seed in (0, 1)]
    assert ends[0] != ends[1] and trials[0].value == sum(ends) / 2
    assert trials[0].intermediate_values[4] == ends[0]
    assert [checkpoint.load(FOLDER / f"trial-0000-seed-{seed}").config.seed for seed in (0, 1)] == [0, 1]


def test_a_budget_of_seconds_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, trials = swept(trials=1, budget={"seconds": 0.2})
    epochs = trials[0].user_attrs["num_epochs"]
    assert epochs == checkpoint.load(FOLDER / "trial-0000").epoch >= 1
    with pytest.raises(InputError, match=r"budget.tokens is absent in s.toml; it must be|budget.seconds is absent"):
        run_sweep(read_spec(write_sweep(trials=1)), FOLDER)


def test_a_pruned_trial_stops_with_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """Earlier trials of 0 bits per byte: the median pruner stops every other after its warm-up."""
    spec = read_spec(write_sweep(trials=3, pruner="median"))
    sweep = Sweep(spec, FOLDER)
    space = {
        "alpha": optuna.distributions.FloatDistribution(0.2, 4.0),
        "sigma_shift": optuna.distributions.CategoricalDistribution((2, 4)),
    }
    for _ in range(2):
        sweep.study.add_trial(
            optuna.create_trial(
                value=0.0, params={"alpha": 1.0, "sigma_shift": 2}, distributions=space,
                intermediate_values={1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0},
            )
        )  # fmt: skip
    assert run_sweep(spec, FOLDER) is None
    trial = sweep.study.trials[2]
    run = FOLDER / "trial-0002"
    assert trial.state == TrialState.PRUNED and checkpoint.load(run).epoch == 6
    assert trial.value == validations(run)[-1][1] and sorted(trial.intermediate_values) == [1, 2]
    assert "trial 2: pruned at" in capsys.readouterr().out
    assert run_sweep(spec, FOLDER) is None and checkpoint.load(run).epoch == 6


@pytest.mark.parametrize("pruner", ["none", "median", "hyperband"])
def test_pruners(pruner: str) -> None:
    kinds = {"none": "NopPruner", "median": "MedianPruner", "hyperband": "HyperbandPruner"}
    assert type(studies._pruner(read_spec(write_sweep(pruner=pruner)))).__name__ == kinds[pruner]


def begin(*options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "nanoegg_mlx.cli", "sweep", "s.toml", "--folder", str(FOLDER), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_lines(run: Path, lines: int) -> None:
    """Waits until a run has so many lines of metrics."""
    deadline = time.monotonic() + 60
    file = run / "metrics.jsonl"
    while not file.exists() or file.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_killed_worker_loses_nothing() -> None:
    """Killed twice, before and after a checkpoint; the trial ends with the bits of an undisturbed run."""
    spec = read_spec(write_sweep(trials=1, budget={"tokens": 400 * EPOCH}))
    drawn = []
    for lines in (2, 110):
        process = begin()
        wait_for_lines(FOLDER / "trial-0000", lines)
        process.kill()
        process.communicate()
        running = read_study(spec, FOLDER).trials
        assert [trial.state for trial in running] == [TrialState.RUNNING]
        drawn.append(running[0].params)
    assert run_sweep(spec, FOLDER) is None
    trials = read_study(spec, FOLDER).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE]
    assert trials[0].params == drawn[0] == drawn[1]
    assert [path.name for path in FOLDER.glob("trial-*")] == ["trial-0000"]
    config = checkpoint.load(FOLDER / "trial-0000").config
    train(config.replace(checkpoints="runs", name="alone"))
    assert parameters(FOLDER / "trial-0000") == parameters(Path("runs/alone"))
    assert validations(FOLDER / "trial-0000") == validations(Path("runs/alone"))
    assert trials[0].intermediate_values[4] == trials[0].value == validations(Path("runs/alone"))[-1][1]
    epochs = [line["epoch"] for line in read_metrics(FOLDER / "trial-0000" / "metrics.jsonl")]
    assert epochs == list(range(401))


def test_two_workers_end_with_the_command_and_go_on() -> None:
    """SIGTERM to the command alone, then a second start; every point of the grid is trained once."""
    spec = read_spec(write_sweep(**GRID, budget={"tokens": 300 * EPOCH}))
    process = begin("--workers", "2")
    for number in (0, 1):
        wait_for_lines(FOLDER / f"trial-{number:04d}", 10)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == b"" and out.count(b"Stopped by SIGTERM") == 1, err
    stopped = read_study(spec, FOLDER).trials
    assert {trial.state for trial in stopped} <= {TrialState.RUNNING, TrialState.COMPLETE}
    for run in FOLDER.glob("trial-*"):
        lines = read_metrics(run / "metrics.jsonl")
        assert checkpoint.load(run, pytest.fail).epoch == (lines[-1]["epoch"] if lines else 0)
    assert run_sweep(spec, FOLDER) is None
    trials = read_study(spec, FOLDER).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    found = sorted((trial.params["alpha"], trial.params["rank"]) for trial in trials)
    assert found == [(0.5, 1), (0.5, 2), (2.0, 1), (2.0, 2)]
    assert len(list(FOLDER.glob("trial-*"))) == 4
    owners = {json.loads(line)["worker_id"] for line in (FOLDER / "journal.log").read_text().splitlines()}
    assert len(owners) >= 4


def test_workers_do_not_outlive_a_killed_command() -> None:
    spec = read_spec(write_sweep(trials=2, budget={"tokens": 1e6 * EPOCH}))
    process = begin("--workers", "2")
    for number in (0, 1):
        wait_for_lines(FOLDER / f"trial-{number:04d}", 3)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    sweep = Sweep(spec, FOLDER)
    claims = []
    while len(claims) < 2:  # a worker's claim is free when it has ended
        assert time.monotonic() < deadline
        claimed = sweep._orphan(sweep.study.get_trials(deepcopy=False))
        claims += [claimed] if claimed else []
        time.sleep(0.02)
    for number in (0, 1):
        run = FOLDER / f"trial-{number:04d}"
        assert checkpoint.load(run).epoch == read_metrics(run / "metrics.jsonl")[-1]["epoch"] < 1e6


def test_trials_of_others_are_left_to_them() -> None:
    """Of another machine's folder; and of a process that was killed before it had claimed, which is replaced."""
    url = f"sqlite:///{Path('study.db').absolute()}"
    spec = read_spec(write_sweep(trials=3))
    sweep = Sweep(spec, FOLDER, url)
    sweep.study.ask().set_user_attr("folder", "elsewhere")
    lost = sweep.study.ask()
    claimed = sweep.claim()
    assert claimed is not None and claimed.trial.number == 2 and sweep.claim() is None
    later = datetime.now() + timedelta(minutes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "datetime", type("Later", (), {"now": staticmethod(lambda: later)}))
        assert sweep.claim() is None  # it is recorded as lost
        replacement = sweep.claim()
    assert replacement is not None and replacement.trial.number == 3 and sweep.claim() is None
    states = [trial.state for trial in sweep.study.trials]
    assert states == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]
    assert lost.number == 1
    claimed.lock.release()
    again = sweep.claim()
    assert again is not None and again.trial.number == 2 and again.values == claimed.values


def test_a_trial_that_ends_while_another_worker_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read_spec(write_sweep())
    one, other = Sweep(spec, FOLDER), Sweep(spec, FOLDER)
    claimed = one.claim()
    assert claimed is not None and claimed.trial.number == 0
    lock = other._lock

    def ends_before(number: int) -> Any:
        if number == 0:
            one.finish(claimed, Figure(3.0))
            claimed.lock.release()
        return lock(number)

    monkeypatch.setattr(other, "_lock", ends_before)
    following = other.claim()
    assert following is not None and following.trial.number == 1
    assert one.study.trials[0].value == 3.0


def test_values_that_do_not_fit_together() -> None:
    """A step within the range that the group does not divide: the trial is refused, and the sweep goes on."""
    ranges = {"population": {"low": 8, "high": 32, "step": 8}, "group_size": {"choices": [8]}}
    spec = read_spec(write_sweep(ranges=ranges, trials=2, budget={"tokens": 12 * 32 * 6}))
    sweep = Sweep(spec, FOLDER)
    claimed = sweep.claim()
    assert claimed is not None
    sweep.refuse(claimed, InputError("They do not fit."))
    claimed.lock.release()
    assert run_sweep(spec, FOLDER) is None
    assert [trial.state for trial in sweep.study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_torn_journal_and_a_torn_folder() -> None:
    """A power cut within a line of the journal, and a kill between a run's folder and its first file."""
    spec = read_spec(write_sweep())
    Sweep(spec, FOLDER)
    with (FOLDER / "journal.log").open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    (FOLDER / "trial-0000").mkdir()
    (FOLDER / "trial-0000" / ".lock").touch()
    (FOLDER / "trial-0000" / ".config.toml.tmp").touch()
    assert run_sweep(spec, FOLDER) is None
    assert checkpoint.load(FOLDER / "trial-0000").epoch == 12
    assert sorted(path.name for path in FOLDER.glob("trial-*")) == ["trial-0000", "trial-0001"]


def one_error(capsys: pytest.CaptureFixture[str], arguments: list[str], part: str) -> None:
    assert main(["sweep", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and part in err, err


def test_storages_and_folders_that_do_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = write_sweep(trials=1)
    at = [sweep, "--folder", str(FOLDER)]
    for storage in ("sqlite:////nowhere/study.db", "nonsense://x", "nowhere/journal.log", "postgresql://127.0.0.1:1/x"):
        one_error(capsys, [*at, "--storage", storage], f"The storage {storage} cannot be used")
        assert not FOLDER.exists()
    one_error(capsys, [*at, "--report"], "has no sweep")
    FOLDER.mkdir()
    (FOLDER / "thesis.txt").write_text("mine")
    one_error(capsys, at, "has other files")
    (FOLDER / "thesis.txt").unlink()
    assert main(["sweep", *at]) == 0
    capsys.readouterr()
    write_sweep(trials=1, ranges={"alpha": {"low": 0.2, "high": 3.0}})
    one_error(capsys, at, 'ranges.alpha is {"low": 0.2, "high": 3.0} in s.toml; it must be {"low": 0.2, "high": 4.0}')
    write_sweep(trials=1, seeds=2)
    one_error(capsys, at, "seeds is 2 in s.toml; it must be 1")
    write_sweep(trials=1)
    np.save("valid.npy", np.load("valid.npy")[:-1])
    one_error(capsys, at, "the content of the valid cache is")
    journal = str(FOLDER / "journal.log")
    one_error(capsys, [sweep, "--folder", "other", "--storage", journal], "the content of the valid cache is")
    (FOLDER / "sweep.json").write_text("{}")
    one_error(capsys, at, "sweep.json is damaged")
    (FOLDER / "sweep.json").unlink()
    one_error(capsys, at, "has other files")
    monkeypatch.setitem(sys.modules, "optuna", None)
    one_error(capsys, at, "Optuna is not installed; a sweep needs it: `pip install 'nanoegg-mlx[sweep]'`.")


def test_a_run_is_never_taken_for_another_trial(capsys: pytest.CaptureFixture[str]) -> None:
    """Without its journal the sweep begins again, and draws other settings."""
    assert main(["sweep", write_sweep(trials=1), "--folder", str(FOLDER)]) == 0
    (FOLDER / "journal.log").unlink()
    capsys.readouterr()
    before = parameters(FOLDER / "trial-0000")
    one_error(capsys, [write_sweep(trials=1, sampler_seed=1), "--folder", str(FOLDER)], "trial-0000 cannot be resumed")
    assert parameters(FOLDER / "trial-0000") == before


def test_a_storage_that_is_lost_in_the_middle(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run keeps its checkpoints, and the sweep goes on when the storage is back."""

    def report(*arguments: Any) -> None:
        raise optuna.exceptions.StorageInternalError("The server is gone.")

    arguments = [write_sweep(trials=1), "--folder", str(FOLDER)]
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "report", report)
        one_error(capsys, arguments, "journal.log cannot be used (The server is gone)")
    assert main(["sweep", *arguments]) == 0
    assert checkpoint.load(FOLDER / "trial-0000").epoch == 12
    assert validations(FOLDER / "trial-0000")[1:] == [(epoch, figure) for epoch, figure in finished()]


def finished() -> list[tuple[int, float]]:
    """The reported validations of the first trial, by epoch."""
    trial = read_study(read_spec("s.toml"), FOLDER).trials[0]
    return [(3 * step, figure) for step, figure in sorted(trial.intermediate_values.items())]


def test_tracked_runs_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Tracker:
        place = "here"

        def __init__(self, folder: Path, config: Config, epochs: int) -> None:
            seen.append((os.environ["WANDB_RUN_GROUP"], folder.name))

        def log(self, line: dict[str, Any]) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setenv("WANDB_RUN_GROUP", "")  # so that the variable is restored
    monkeypatch.delenv("WANDB_RUN_GROUP")
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Tracker)
    assert main(["sweep", write_sweep(name="mine"), "--track", "wandb", "--folder", str(FOLDER)]) == 0
    assert seen == [("mine", "trial-0000"), ("mine", "trial-0001")]
