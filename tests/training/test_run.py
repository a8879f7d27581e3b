"""Killed, failed, damaged, continued and branched runs end with the bits of an undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, InputError
from nanoegg_mlx.cli import main
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.durable import Lock
from nanoegg_mlx.store.fitness_log import read_fitness_log
from nanoegg_mlx.store.metrics import read_metrics
from nanoegg_mlx.training.replay import params_at
from tests.tiny import resume, train, work_in
from tests.traces import ENGINES, pseudo_text

CONFIG = Config(
    n_layer=1, n_embd=8, population=16, tokens_per_update=6, train="train.npy", valid="valid.npy", checkpoints="runs",
    name="t", num_epochs=12, validate_every=5, validation_batch_size=8, checkpoint_every=4, engine=ENGINES[-1],
)  # fmt: skip
FOLDER = Path("runs/t")
TIMES = ("seconds", "rss_mb", "tokens_per_second", "generate_seconds", "update_seconds", "exchange_seconds")


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a small corpus, to work in."""
    return work_in(tmp_path, monkeypatch)


def outcome(folder: Path = FOLDER) -> dict[str, Any]:
    """All results of a run except times."""
    opened = checkpoint.load(folder, pytest.fail)
    lines = [{key: line[key] for key in line if key not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]
    for line in lines:  # float64: its last bits depend on the engine
        line["validation_exact"] = line["validation_exact"] and round(line["validation_exact"], 10)
    return {
        "epoch": opened.epoch,
        "params": {name: np.array(value).tobytes() for name, value in opened.params.items()},
        "states": opened.states().tobytes(),
        "metrics": lines,
        "votes": [(vote.epoch, vote.fitness.tobytes()) for vote in read_fitness_log(folder / "votes.bin")],
        "kept": [path.name for path in checkpoint.folders(folder)],
        "best": (folder / "best").resolve().name,
        "tokens": opened.info["tokens"],
    }


@pytest.fixture
def expected(corpus: Path) -> dict[str, Any]:
    """The outcome of an undisturbed run."""
    train(CONFIG)
    result = outcome()
    shutil.rmtree("runs")
    return result


def test_the_undisturbed_run(expected: dict[str, Any]) -> None:
    assert [line["epoch"] for line in expected["metrics"]] == list(range(13))
    assert [line["epoch"] for line in expected["metrics"] if line["validation"]] == [0, 5, 10, 12]
    assert [epoch for epoch, _ in expected["votes"]] == list(range(12))
    assert expected["kept"][-3:] == ["epoch-00000004", "epoch-00000008", "epoch-00000012"]
    assert (expected["epoch"], expected["tokens"]) == (12, 12 * 16 * 6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_longer_run_is_the_same_run(expected: dict[str, Any], engine: str) -> None:
    train(CONFIG.replace(num_epochs=5, checkpoint_every=0))
    resume(FOLDER, {"num_epochs": 12, "checkpoint_every": 4, "engine": engine, "threads": 1})
    result = outcome()
    for key in ("params", "states", "metrics", "votes", "tokens"):
        assert result[key] == expected[key]
    resume(FOLDER, {})  # a finished run does not change
    assert outcome() == result


def test_fifty_kills(corpus: Path) -> None:
    """SIGKILL at random moments of a run that writes all the time; its last bits are an undisturbed run's."""
    config = CONFIG.replace(num_epochs=1000, checkpoint_every=2)
    (corpus / "peace").mkdir()
    for name in ("train.npy", "valid.npy"):
        shutil.copy(name, corpus / "peace")
    (corpus / "c.toml").write_text(config.to_toml())
    train = [sys.executable, "-m", "nanoegg_mlx.cli", "train"]
    subprocess.run([*train, "--config=../c.toml"], cwd=corpus / "peace", check=True, capture_output=True)

    generator = random.Random(1)
    unfinished = 0
    for number in range(50):
        command = [*train, f"--resume={FOLDER}"] if number else [*train, "--config=c.toml"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            assert process.stderr is not None
            process.stderr.readline()  # it has begun
            time.sleep(generator.uniform(0, 0.08))
            process.kill()
        unfinished += process.returncode == -signal.SIGKILL
        done = checkpoint.load(FOLDER, pytest.fail).epoch if checkpoint.folders(FOLDER) else 0
        assert done <= 1000
    assert unfinished >= 40
    assert subprocess.run([*train, f"--resume={FOLDER}"], capture_output=True).returncode == 0
    assert outcome() == outcome(corpus / "peace" / FOLDER)
    assert (FOLDER / "votes.bin").read_bytes() == (corpus / "peace" / FOLDER / "votes.bin").read_bytes()
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(
        path.name for path in (corpus / "peace" / FOLDER).iterdir()
    )


@pytest.mark.parametrize("call", ["write", "pwrite", "fsync", "rename", "replace", "symlink"])
def test_every_failing_call(corpus: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th write, fsync or rename of a run fails, for every n: the run stops, and later continues."""
    config = CONFIG.replace(num_epochs=4, validate_every=2, checkpoint_every=3)
    train(config)
    expected = outcome()
    shutil.rmtree("runs")
    real = getattr(os, call)
    number = 0
    while True:
        number += 1
        calls = 0

        def failing(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:  # noqa: B023
                if call == "write":  # half of it is written before the disk is full
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                train(config)
            except OSError as error:
                assert error.errno == 28
        if calls < number:
            break
        if (FOLDER / "config.toml").exists():
            resume(FOLDER, {})
            assert outcome() == expected
        else:
            assert not checkpoint.folders(FOLDER) if FOLDER.exists() else True
        shutil.rmtree("runs", ignore_errors=True)
    assert number > 3


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG.replace(num_epochs=3))
    capsys.readouterr()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["train", f"--resume={FOLDER}", "--num-epochs=6"]) == 2
    assert "error: No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert checkpoint.load(FOLDER, pytest.fail).epoch == 3


def test_a_damaged_checkpoint_is_skipped(expected: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG.replace(num_epochs=10))
    states = FOLDER / "epoch-00000010" / "states.safetensors"
    content = bytearray(states.read_bytes())
    content[-1] ^= 1
    states.write_bytes(content)
    capsys.readouterr()
    resume(FOLDER, {"num_epochs": 12})
    assert "states.safetensors has changed" in capsys.readouterr().err
    assert (FOLDER / "damaged-epoch-00000010-1" / "states.safetensors").read_bytes() == content
    result = outcome()
    assert all(result[key] == expected[key] for key in ("params", "states", "metrics", "votes"))


def test_changes_that_a_resumed_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG.replace(num_epochs=2))
    before = {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"rank is 2; it must be 1, alpha is 2\.0; it must be 4\.0"):
        resume(FOLDER, {"alpha": 2.0, "rank": 2})
    np.save("train.npy", pseudo_text(3001, 1))
    with pytest.raises(
        InputError, match=r"cache train\.npy has changed; it must be the same as in the training of runs/t"
    ):
        resume(FOLDER, {"num_epochs": 4})
    lock = Lock(FOLDER)
    assert main(["train", f"--resume={FOLDER}"]) == 2
    assert f"runs/t is in use by process {os.getpid()}" in capsys.readouterr().err
    lock.release()
    with pytest.raises(InputError, match="runs is not a run's; to be resumed it must"):
        resume(FOLDER.parent, {})
    after = {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == {path: content for path, content in before.items() if path.name != ".lock"}


def test_a_damaged_fitness_log_is_reported() -> None:
    train(CONFIG)
    votes = FOLDER / "votes.bin"
    votes.write_bytes(votes.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"votes\.bin is damaged: it ends before epoch 12"):
        resume(FOLDER, {"num_epochs": 14})
    votes.rename("elsewhere")
    resume(FOLDER, {"num_epochs": 14})
    assert [vote.epoch for vote in read_fitness_log(votes)] == [12, 13]
    resume(FOLDER, {"num_epochs": 15})


def test_branches(expected: dict[str, Any]) -> None:
    train(CONFIG)
    before = outcome()
    # With the checkpoint's states and the same config, a branch equals the run.
    assert main(["train", f"--branch={FOLDER}@8", "--name=same"]) == 0
    result = outcome(Path("runs/same"))
    assert all(result[key] == expected[key] for key in ("params", "states", "metrics", "votes", "tokens"))
    # From the fitness log alone, into another population; the branch's log is enough to replay it.
    assert main(["train", f"--branch={FOLDER}@7", "--name=other", "--population=6", "--no-fast-fitness"]) == 0
    other = Path("runs/other")
    assert [(vote.epoch, vote.config.population) for vote in read_fitness_log(other / "votes.bin")] == [
        *[(epoch, 16) for epoch in range(7)],
        *[(epoch, 6) for epoch in range(7, 12)],
    ]
    _, replayed = params_at(other / "votes.bin", 12)
    kept = checkpoint.load(other, pytest.fail)
    assert all(np.array_equal(np.array(kept.params[name]), np.array(replayed[name])) for name in replayed)
    assert [line["epoch"] for line in read_metrics(other / "metrics.jsonl")] == list(range(13))
    assert read_metrics(other / "metrics.jsonl")[-1]["tokens"] == 7 * 96 + 5 * 36
    assert outcome() == before
    for wrong in (f"{FOLDER}", f"{FOLDER}@0", f"{FOLDER}@x", f"{FOLDER}@99", "nowhere@3"):
        assert main(["train", f"--branch={wrong}"]) == 2
    assert main(["train", f"--branch={FOLDER}@8", "--n-embd=9"]) == 2


def test_replay_command(capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG)
    capsys.readouterr()
    assert main(["replay", str(FOLDER), "--epoch=8", "-o", "model.safetensors"]) == 0
    assert (Path("model.safetensors").read_bytes()) == (FOLDER / "epoch-00000008/model.safetensors").read_bytes()
    replayed = mx.load("model.safetensors")
    assert isinstance(replayed, dict) and len(replayed) == 13
    assert main(["replay", str(FOLDER), "--verify"]) == 0
    assert capsys.readouterr().out.count("the same bits") == len(checkpoint.folders(FOLDER))
    assert main(["replay", str(FOLDER), "--epoch=8", "-o", "model.safetensors"]) == 2
    assert "must be a new file" in capsys.readouterr().err
    # The fitness log of another run gives other parameters.
    train(CONFIG.replace(seed=1))
    shutil.copy("runs/t-2/votes.bin", FOLDER)
    assert main(["replay", str(FOLDER), "--verify"]) == 1
    assert "differs in" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals(number: signal.Signals, code: int, expected: dict[str, Any]) -> None:
    (FOLDER.parent.parent / "c.toml").write_text(CONFIG.replace(num_epochs=10**6, checkpoint_every=0).to_toml())
    command = [sys.executable, "-m", "nanoegg_mlx.cli", "train", "--config=c.toml"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        lines = FOLDER / "metrics.jsonl"
        while process.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") > 3):
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code and f"Stopped by {number.name}" in out and "Traceback" not in err
    opened = checkpoint.load(FOLDER, pytest.fail)
    votes = list(read_fitness_log(FOLDER / "votes.bin"))
    assert opened.epoch == len(votes) == read_metrics(FOLDER / "metrics.jsonl")[-1]["epoch"] >= 3
    assert [vote.fitness.tobytes() for vote in votes][:12] == [vote for _, vote in expected["votes"]][: len(votes)]


def test_a_second_signal_ends_at_once() -> None:
    script = (
        "import os, signal; from nanoegg_mlx.training.signals import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    assert stop.attempt(lambda: os.kill(os.getpid(), signal.SIGINT) or 1) is None\n"
        "    assert stop.signal == signal.SIGINT\n"
        "    print('one', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('two', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "one\n" and ended.returncode == -signal.SIGTERM
