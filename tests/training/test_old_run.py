"""A run's folder written by version 0.1.0: resuming, branching and replaying it gives the bits of that version."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from nanoegg_mlx.cli import main
from nanoegg_mlx.store.fitness_log import read_fitness_log
from tests.traces import ENGINES, pseudo_text

RUN = Path(__file__).parent / "run_of_0_1_0"
"""6 epochs. Version 0.1.0 itself computed the SHA-256 below from it: model, states, fitness of all epochs."""
RESUMED = (
    "94f675db29b86e6098c8e2f6b6780ae7c7d5df6314c58c0db21005a58351c627",
    "4a32477f8a5de8bd1e5bb396a382013fa8eac5733c8e84c72dae34641deea1f4",
    "604acb7a67d493a9720edf58569559b5cca837d97d2abb46279cc39a0d77d4c9",
)
BRANCHED = (
    "2541a3872a1e22445c5501cd40e5734420a3ba1477e0297176216355b248183a",
    "cd30bed3203d871c2e84f8dd58aeb6039ba15466353cd5894e3adf7ac0537ae6",
    "4822e16db511a7b60b4ad8bc89643bb8d7ca88b73c84b46cd7d7fe9eee088811",
)
REPLAYED = "2bf8d55dfa494de6bf80a6289119ae4ca27a155b8a7a716207e63c377cec7192"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run and its caches in a new folder."""
    monkeypatch.chdir(tmp_path)
    np.save("train.npy", pseudo_text(2000, 1))
    np.save("valid.npy", pseudo_text(500, 2))
    shutil.copytree(RUN, "checkpoints/old", symlinks=True)


def result(run: str, epoch: int) -> tuple[str, ...]:
    folder = Path("checkpoints", run)
    model, states = (folder / f"epoch-{epoch:08d}" / f"{name}.safetensors" for name in ("model", "states"))
    logged = list(read_fitness_log(folder / "votes.bin"))
    assert [one.epoch for one in logged] == list(range(epoch))
    fitness = b"".join(one.fitness.tobytes() for one in logged)
    return sha256(model.read_bytes()), sha256(states.read_bytes()), sha256(fitness)


@pytest.mark.parametrize("engine", ENGINES)
def test_resume(engine: str) -> None:
    assert main(["train", "--resume=checkpoints/old", "--num-epochs=12", f"--engine={engine}"]) == 0
    assert result("old", 12) == RESUMED


def test_branch() -> None:
    assert main(["train", "--branch=checkpoints/old@4", "--name=b", "--num-epochs=8"]) == 0
    assert result("b", 8) == BRANCHED


def test_replay_eval_and_plot(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "checkpoints/old", "--epoch=3", "-o", "model.safetensors"]) == 0
    assert sha256(Path("model.safetensors").read_bytes()) == REPLAYED
    assert main(["replay", "checkpoints/old", "--verify"]) == 0
    assert capsys.readouterr().out.count("the same bits") == 2
    assert main(["eval", "checkpoints/old"]) == 0
    assert "8.4908" in capsys.readouterr().out
    assert main(["plot", "checkpoints/old", "-o", "run.svg"]) == 0
