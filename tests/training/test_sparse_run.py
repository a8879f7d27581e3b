"""Runs with a sparse embedding: continued and branched, from their checkpoints alone, and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Trainer
from nanoegg_mlx.cli import main
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.fitness_log import read_fitness_log
from nanoegg_mlx.store.tokens import bytes_read
from tests.tiny import branch, resume, train, work_in
from tests.traces import ENGINES, pseudo_text
from tests.training.test_nudged_run import outcome

CONFIG = Config(
    n_layer=1, n_embd=8, population=24, group_size=4, tokens_per_update=6, train="train.npy", valid="valid.npy",
    checkpoints="runs", name="t", num_epochs=8, validate_every=3, validation_batch_size=8, checkpoint_every=3,
    sigma_shift=1, fast_fitness=False, sparse_embedding=True, engine=ENGINES[-1],
)  # fmt: skip
FOLDER = Path("runs/t")


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a small corpus, to work in."""
    return work_in(tmp_path, monkeypatch)


def same(left: Any, right: Any) -> bool:
    return all(left[key] == right[key] for key in ("params", "states", "metrics"))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupted_run_is_the_same_run(engine: str) -> None:
    """Also on another engine; the log has the fitness of all epochs."""
    train(CONFIG.replace(name="whole"))
    train(CONFIG.replace(num_epochs=6))
    resume(FOLDER, {"num_epochs": 8, "engine": engine, "chunk": 6})
    whole, resumed = outcome(Path("runs/whole")), outcome(FOLDER)
    for line in [*whole["metrics"], *resumed["metrics"]]:  # float64: its last bits depend on the engine
        line["validation_exact"] = line["validation_exact"] and round(line["validation_exact"], 10)
    assert same(whole, resumed)
    logged = list(read_fitness_log(FOLDER / "votes.bin"))
    assert [one.epoch for one in logged] == list(range(8))
    assert all(len(np.unique(one.fitness)) > 3 for one in logged)  # more than signs
    with pytest.raises(InputError, match="sparse_embedding is False; it must be True"):
        resume(FOLDER, {"sparse_embedding": False})


def test_branches(capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG.replace(name="dense", sparse_embedding=False, num_epochs=6))
    branch(Path("runs/dense"), 4, {"sparse_embedding": True, "num_epochs": 9})  # from its log
    assert [one.config.sparse_embedding for one in read_fitness_log(Path("runs/dense-2/votes.bin"))] == [
        False, False, False, False, True, True, True, True, True,
    ]  # fmt: skip
    assert main(["replay", "runs/dense-2", "--epoch=4", "-o", "model.safetensors"]) == 0
    branch(Path("runs/dense-2"), 6, {"sparse_embedding": False, "num_epochs": 7})  # from its checkpoint
    assert checkpoint.load("runs/dense-3", pytest.fail).epoch == 7
    capsys.readouterr()
    # The checkpoint of another epoch is missing, and the log has no text.
    assert main(["train", "--branch=runs/dense-2@8", "--num-epochs=9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: Epoch 4 of runs/dense-2/votes.bin has sparse_embedding = true; it must be false for"
    )
    assert error.count("\n") == 1 and "rebuilt from its checkpoints" in error


def test_a_replay_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG)
    capsys.readouterr()
    for options in (["--verify"], ["--epoch=3", "-o", "model.safetensors"]):
        assert main(["replay", "runs/t", *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: Epoch 0 of runs/t/votes.bin has sparse_embedding = true; it must be false for")
        assert error.count("\n") == 1
    assert not Path("model.safetensors").exists()


def test_every_command_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG)
    for command in (
        ["eval", "runs/t"],
        ["inspect", "runs/t"],
        ["plot", "runs/t", "-o", "run.svg"],
        ["report", "runs/t", "-o", "run.html"],
        ["export", "runs/t", "--hf-folder=hub"],
    ):
        assert main(command) == 0, capsys.readouterr().err


def test_bytes_read() -> None:
    inputs = np.array([[0, 3, 3], [4, 0, 1]], np.uint8)
    reads = bytes_read(inputs, 5)
    assert reads.dtype == bool
    assert reads.tolist() == [[True, False, False, True, False], [True, True, False, False, True]]


@pytest.mark.parametrize("engine", ENGINES)
def test_only_inputs_count_as_read(engine: str) -> None:
    """A byte that is only predicted has no votes; its row stays, whatever the bound."""
    config = CONFIG.replace(engine=engine, alpha=1.0)
    trainer = Trainer(config, pseudo_text(600, 1))
    inputs, targets = trainer.lanes.batch(0)
    before = np.array(trainer.params["emb"])
    trainer.step()
    moved = (np.array(trainer.params["emb"]) != before).any(axis=1)
    assert set(np.flatnonzero(moved)) == set(np.unique(inputs))
    assert not set(np.unique(targets)) <= set(np.unique(inputs))
