"""The commands as a user types them: a tiny run from text to bits per byte, and every mistake as one sentence."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, validate
from nanoegg_mlx.cli import COMMANDS, main
from nanoegg_mlx.engines import make_engine, native_problem
from nanoegg_mlx.measure import baselines
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.tokens import load_tokens
from tests.traces import pseudo_text

MODEL = ["--n-layer=1", "--n-embd=8", "--population=16", "--tokens-per-update=10", "--validation-batch-size=8"]


@pytest.fixture
def caches(tmp_path: Path) -> list[str]:
    """Options that name a small corpus and a folder for runs."""
    np.save(tmp_path / "train.npy", pseudo_text(3000, 1))
    np.save(tmp_path / "valid.npy", pseudo_text(900, 2))
    return [f"--train={tmp_path}/train.npy", f"--valid={tmp_path}/valid.npy", f"--checkpoints={tmp_path}/runs"]


def train(*options: str) -> int:
    return main(["train", *MODEL, *options])


def one_error(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Exactly one line on stderr, `error: ` and a sentence with these parts."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(part in err for part in parts), err


def test_train_then_eval(tmp_path: Path, caches: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-epochs=7", "--validate-every=3", "--checkpoint-every=2", "--name=t"]
    assert train(*caches, *options) == 0
    out, err = capsys.readouterr()
    run = tmp_path / "runs" / "t"
    assert sorted(path.name for path in run.glob("epoch-*")) == ["epoch-00000004", "epoch-00000006", "epoch-00000007"]

    opened = checkpoint.load(run)
    valid = load_tokens(tmp_path / "valid.npy")
    _, figure = validate(opened.params, valid, opened.config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(8))
    assert [line["tokens"] for line in lines] == [160 * epoch for epoch in range(8)]
    assert [line["epoch"] for line in lines if line["validation"] is not None] == [0, 3, 6, 7]
    assert lines[-1]["validation"] == figure == opened.info["validation"]
    for line in lines[1:]:
        assert line["loss_min"] <= line["loss_mean"] <= line["loss_max"]
        assert 0 < line["moved_matrix"] <= 1 and 0 <= line["moved_vector"] <= 1 and line["tokens_per_second"] > 0
    for epochs in (0, 3, 6, 7):
        assert f"epoch {epochs}: validation" in err
    assert f"after 7 epochs     {figure:7.4f}" in out and f"bigram             {baselines.bigram(valid):7.4f}" in out

    assert main(["eval", str(run), "--json", "--baselines"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["bits_per_byte"] == figure and about["epoch"] == 7 and about["tokens"] == 8 * 112 - 8
    assert about["xz"] == baselines.xz(valid) and about["unigram"] == baselines.unigram(valid)

    (tmp_path / "book.txt").write_text("Es war einmal ein König. " * 3, encoding="utf-8")
    assert main(["eval", str(run), str(tmp_path / "book.txt"), "--rows", "2"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    # A text file is one document: 0x00 and its bytes, 1 + 78 tokens in 2 rows of 39.
    assert main(["eval", str(run / "epoch-00000004"), str(tmp_path / "book.txt"), "--json", "--rows=2"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["epoch"] == 4 and about["tokens"] == 2 * 38 and "gzip" not in about

    assert train(*caches, *options) == 0
    again = tmp_path / "runs" / "t-2"
    for name, value in checkpoint.load(again).params.items():
        assert np.array_equal(np.array(value), np.array(opened.params[name]))


def test_a_config_file_and_options_over_it(tmp_path: Path, caches: list[str]) -> None:
    (tmp_path / "c.toml").write_text("[evolution]\nrank = 2\nuse_clt = false\n[run]\nname = 'f'\nnum_epochs = 9\n")
    assert train(*caches, f"--config={tmp_path}/c.toml", "--num-epochs=1", "--no-fast-fitness") == 0
    config = checkpoint.load(tmp_path / "runs" / "f").config
    assert (config.rank, config.use_clt, config.num_epochs, config.fast_fitness) == (2, False, 1, False)
    assert config.population == 16


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--population=7"], ["population is 7", "even"]),
        (["--population=10", "--group-size=4"], ["population is 10", "group_size = 4"]),
        (["--group-size=3"], ["group_size is 3", "even"]),
        (["--n-layer=abc"], ["n_layer is 'abc'", "from 1 to 1024"]),
        (["--alpha=-1"], ["alpha is -1", "above 0"]),
        (["--layers=3"], ["--layers"]),
        (["--population=2000"], ["3000 tokens", "population = 2000", "at most 272 lanes"]),
        (["--validation-batch-size=600"], ["900 tokens", "validation_batch_size is 600", "1 to 450"]),
        (["--vocab-size=50"], ["A token is 122", "vocab_size is 50"]),
        (["--config=nowhere.toml"], ["nowhere.toml cannot be read"]),
        (["--train=nowhere.npy"], ["nowhere.npy", "nanoegg prepare"]),
        (["--name=a/b"], ["name is 'a/b'"]),
    ],
)
def test_mistakes(
    tmp_path: Path, caches: list[str], capsys: pytest.CaptureFixture[str], options: list[str], parts: list[str]
) -> None:
    code = train(*caches, *options)
    assert code == 2
    one_error(capsys, *parts)
    assert not (tmp_path / "runs").exists()


def test_damaged_caches(tmp_path: Path, caches: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    whole = (tmp_path / "train.npy").read_bytes()
    for array, part in ((np.zeros((3, 999), np.uint8), "2-D"), (np.zeros(3000, np.int32), "int32")):
        np.save(tmp_path / "train.npy", array)
        assert train(*caches) == 2
        one_error(capsys, "train.npy", part, "1-D uint8")
    (tmp_path / "train.npy").write_bytes(whole[:-1])
    assert train(*caches) == 2
    one_error(capsys, "train.npy", "truncated")
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, caches: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert train(*caches, f"--checkpoints={tmp_path}/file") == 2
    one_error(capsys, f"{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "mine"


def test_eval_mistakes(tmp_path: Path, caches: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*caches, "--num-epochs=0", "--name=t") == 0
    capsys.readouterr()
    run = str(tmp_path / "runs" / "t")
    (tmp_path / "empty.txt").touch()
    cases = [
        ([str(tmp_path / "none")], ["none"]),
        ([str(tmp_path)], ["has no checkpoint; it must have"]),
        ([run, str(tmp_path / "none.txt")], ["none.txt cannot be read"]),
        ([run, str(tmp_path / "empty.txt")], ["empty.txt is empty"]),
        ([run, "--rows=0"], ["validation_batch_size is 0", "at least 1"]),
        ([run, "--rows=500"], ["900 tokens", "1 to 450"]),
    ]
    for arguments, parts in cases:
        assert main(["eval", *arguments]) == 2
        one_error(capsys, *parts)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    help = capsys.readouterr().out
    if command == "train":
        assert "--tokens-per-update INT" in help and "an even whole number from 2" in help


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["engine"] == make_engine(Config()).name and about["MLX device"] == str(mx.default_device())
    for package in ("mlx", "numpy", "pyarrow", "datasets"):
        assert about[package] == metadata.version(package)
    assert about["python"] == platform.python_version()
    if native_problem() is None:
        from nanoegg_mlx.engines.cpu import instruction_sets

        native = instruction_sets()
        others = about["also available"].split(", ")
        assert about["instruction set"] == native["isa"] and about["threads"] == native["threads"] >= 1
        assert {native["isa"], *others} - {"none"} == set(native["available"]) and native["isa"] not in others
    else:
        assert about["CPU engine"] == f"unavailable: {native_problem()}"
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name:<18} {value}" for name, value in about.items()]


def test_ctrl_c_leaves_a_checkpoint(tmp_path: Path, caches: list[str]) -> None:
    command = [sys.executable, "-m", "nanoegg_mlx.cli", "train", *MODEL, *caches, "--name=t", "--num-epochs=1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "runs" / "t" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 1) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    opened = checkpoint.load(tmp_path / "runs" / "t")
    lines = metrics.read_text().splitlines()
    assert opened.epoch == len(lines) - 1 > 0 and json.loads(lines[-1])["epoch"] == opened.epoch
    assert "Traceback" not in err and "Stopped by SIGINT" in out and "--resume" in out
