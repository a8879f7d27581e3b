"""Runs of nudged activations: continued, branched to and from perturbed weights, killed, and looked at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError
from nanoegg_mlx.cli import main
from nanoegg_mlx.core import averaging
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.fitness_log import read_fitness_log
from nanoegg_mlx.store.metrics import read_metrics, weight_histogram
from tests.tiny import branch, resume, train, work_in
from tests.traces import ENGINES
from tests.training.test_run import TIMES

CONFIG = Config(
    n_layer=2, n_embd=8, population=8, tokens_per_update=6, train="train.npy", valid="valid.npy", checkpoints="runs",
    name="t", num_epochs=8, validate_every=3, validation_batch_size=8, checkpoint_every=3, perturb="activations",
    engine=ENGINES[-1],
)  # fmt: skip
FOLDER = Path("runs/t")
LANES = CONFIG.replace(antithetic=False, group_size=4, decorrelate=True)
COMPARED = pytest.mark.parametrize("config", [CONFIG, LANES.replace(average=True)], ids=["pairs", "lanes"])


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a small corpus, to work in."""
    return work_in(tmp_path, monkeypatch)


def window(epochs: int) -> int:
    """Averages of a short run go back as far as those of a long one."""
    return min(epochs, 3)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "shift_at", window)


def outcome(folder: Path) -> dict[str, Any]:
    """All results of a run but times."""
    opened = checkpoint.load(folder, pytest.fail)
    moving, sums = opened.moving()
    trees = {"model": opened.params, "moving": moving, "sums": sums or {}}
    return {
        "params": {f"{kind} {name}": np.array(tree[name]).tobytes() for kind, tree in trees.items() for name in tree},
        "states": opened.states().tobytes(),
        "metrics": [
            {k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "metrics.jsonl")
        ],
        "log": (folder / "votes.bin").read_bytes(),
    }


@pytest.mark.usefixtures("windows")
@COMPARED
def test_an_interrupted_run_is_the_same_run(config: Config) -> None:
    train(config.replace(name="whole"))
    train(config.replace(num_epochs=6))
    resume(FOLDER, {"num_epochs": 8})
    whole, resumed = outcome(Path("runs/whole")), outcome(FOLDER)
    assert all(resumed[key] == whole[key] for key in ("params", "states", "metrics"))
    assert [(one.epoch, one.fitness.size) for one in read_fitness_log(FOLDER / "votes.bin")] == [
        (e, 0) for e in range(8)
    ]


@COMPARED
def test_the_metrics_of_an_epoch(config: Config) -> None:
    train(config)
    lines = read_metrics(FOLDER / "metrics.jsonl")
    assert "credit_rms" not in lines[0]
    for line in lines[1:]:
        assert line["ties"] is None and line["credit_rms"] > 0
        assert 0.5 < line["signal.blocks.att.Wf"] < 2 and line["signal.head"] > 0
        assert 0 <= line["moved.head"] <= 1 and "moved.ln_out.weight" not in line
    # With threshold 0 every entry with a vote moves, unless it is at a limit.
    assert lines[1]["moved.head"] > 0.9


@COMPARED
def test_a_killed_run_continues_to_the_same_bits(config: Config, corpus: Path) -> None:
    train(config.replace(name="whole", num_epochs=40, checkpoint_every=2))
    Path("c.toml").write_text(config.replace(num_epochs=40, checkpoint_every=2).to_toml())
    command = [sys.executable, "-m", "nanoegg_mlx.cli", "train"]
    for start in ("--config=c.toml", f"--resume={FOLDER}"):
        with subprocess.Popen([*command, start], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            lines = FOLDER / "metrics.jsonl"
            seen = lines.read_bytes().count(b"\n") if lines.exists() else 0
            while process.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") > seen + 3):
                time.sleep(0.005)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    resume(FOLDER, {})
    whole, resumed = outcome(Path("runs/whole")), outcome(FOLDER)
    assert all(resumed[key] == whole[key] for key in ("params", "states", "metrics"))


def test_branches_between_the_estimators(capsys: pytest.CaptureFixture[str]) -> None:
    weights = CONFIG.replace(name="w", perturb="weights", sigma_shift=3, rank=2, num_epochs=6)
    train(weights)
    branch(Path("runs/w"), 6, {"perturb": "activations", "num_epochs": 9, "name": "a"})
    opened = checkpoint.load("runs/a", pytest.fail)
    assert (opened.config.perturb, opened.config.sigma_shift, opened.config.rank) == ("activations", 4, 1)
    assert [one.config.perturb for one in read_fitness_log(Path("runs/a/votes.bin"))] == ["weights"] * 6 + [
        "activations"
    ] * 3
    assert [line["epoch"] for line in read_metrics(Path("runs/a/metrics.jsonl"))] == list(range(10))

    branch(Path("runs/a"), 9, {"perturb": "weights", "num_epochs": 12, "name": "b", "sigma_shift": 2})
    opened = checkpoint.load("runs/b", pytest.fail)
    assert (opened.config.perturb, opened.config.sigma_shift, opened.epoch) == ("weights", 2, 12)

    # Without a checkpoint of the epoch there is no way back: the log has no fitness of it.
    with pytest.raises(InputError, match=r"perturb = 'activations'; it must be 'weights' for a replay"):
        branch(Path("runs/a"), 8, {"name": "c"})
    assert main(["replay", "runs/a", "--verify"]) == 2
    assert "rebuilt from its checkpoints, not from votes" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"perturb is 'weights'; it must be 'activations'"):
        resume(Path("runs/a"), {"perturb": "weights"})


def test_branches_between_pairs_and_lanes() -> None:
    """States, parameters and text go on; so do runs of perturbed weights."""
    lanes = {"antithetic": False, "group_size": 4}
    train(CONFIG.replace(num_epochs=6))
    branch(FOLDER, 3, {**lanes, "num_epochs": 6, "name": "lanes"})
    branch(Path("runs/lanes"), 6, {"antithetic": True, "num_epochs": 9, "name": "pairs"})
    for name, compared in (("lanes", (False, 4, 6)), ("pairs", (True, 4, 9))):
        opened = checkpoint.load(f"runs/{name}", pytest.fail)
        assert (opened.config.antithetic, opened.config.group_size, opened.epoch) == compared
    # From the same checkpoint with the same lanes, what is compared decides the next step.
    train(CONFIG.replace(name="straight", group_size=4, num_epochs=3))
    branch(Path("runs/straight"), 3, {"antithetic": False, "num_epochs": 4, "name": "one"})
    branch(Path("runs/straight"), 3, {"num_epochs": 4, "name": "other"})
    assert outcome(Path("runs/one"))["params"] != outcome(Path("runs/other"))["params"]

    branch(Path("runs/lanes"), 6, {"perturb": "weights", "num_epochs": 9, "name": "w", "rank": 2})
    opened = checkpoint.load("runs/w", pytest.fail)
    assert (opened.config.perturb, opened.config.antithetic, opened.config.group_size) == ("weights", True, 4)
    branch(Path("runs/w"), 9, {"perturb": "activations", "antithetic": False, "num_epochs": 12, "name": "back"})
    opened = checkpoint.load("runs/back", pytest.fail)
    assert (opened.config.perturb, opened.config.antithetic, opened.epoch) == ("activations", False, 12)
    with pytest.raises(InputError, match=r"group_size is 130; it must be at most 128 with antithetic = false"):
        branch(Path("runs/w"), 9, {"perturb": "activations", "antithetic": False, "group_size": 130, "population": 130})
    with pytest.raises(InputError, match=r"antithetic is True; it must be False"):
        resume(Path("runs/back"), {"antithetic": True})


@pytest.mark.usefixtures("windows")
def test_branches_of_averaged_parameters() -> None:
    """They go on from the moving parameters, and with the same average only if that is averaged too."""
    train(LANES.replace(average=True))
    plain = LANES.replace(name="plain", num_epochs=10)
    train(plain)
    source = checkpoint.load(FOLDER, pytest.fail)
    moving, _ = source.moving()
    for average in (False, True):
        name = f"to-{average}"
        branch(FOLDER, 6, {"name": name, "average": average, "num_epochs": 8})
        branched, sums = checkpoint.load(f"runs/{name}", pytest.fail).moving()
        assert all(np.array_equal(np.array(moving[leaf]), np.array(branched[leaf])) for leaf in moving)
        assert (sums is None) == (not average)
        same = outcome(Path(f"runs/{name}"))["params"] == outcome(FOLDER)["params"]
        assert same == average
    # Training itself does not depend on it.
    assert outcome(Path("runs/to-False"))["states"] == outcome(FOLDER)["states"]
    branch(FOLDER, 8, {"name": "w", "perturb": "weights", "num_epochs": 9})
    assert checkpoint.load("runs/w", pytest.fail).config.average is False
    resume(FOLDER, {"num_epochs": 10})
    longer, _ = checkpoint.load(FOLDER, pytest.fail).moving()
    straight = checkpoint.load("runs/plain", pytest.fail).params
    assert all(np.array_equal(np.array(longer[leaf]), np.array(straight[leaf])) for leaf in straight)
    with pytest.raises(InputError, match=r"average is False; it must be True"):
        resume(FOLDER, {"average": False})


@pytest.mark.usefixtures("windows")
def test_the_model_of_a_checkpoint_is_the_average(capsys: pytest.CaptureFixture[str]) -> None:
    train(LANES.replace(average=True, sample_bytes=10))
    opened = checkpoint.load(FOLDER, pytest.fail)
    moving, sums = opened.moving()
    assert sums is not None
    for name, value in opened.params.items():
        assert np.array_equal(np.array(value), np.array(sums[name]) >> 3)
    assert any(not np.array_equal(np.array(opened.params[name]), np.array(moving[name])) for name in moving)
    assert main(["eval", str(FOLDER), "--json"]) == 0
    figure = json.loads(capsys.readouterr().out)["bits_per_byte"]
    lines = read_metrics(FOLDER / "metrics.jsonl")
    assert lines[-1]["validation"] == figure == opened.info["validation"]
    assert lines[-1]["weights"] == weight_histogram(opened.config, opened.params)


@COMPARED
def test_every_command_takes_it(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    train(config.replace(sample_bytes=10))
    for command in (
        ["eval", "runs/t", "--baselines", "--by-position"],
        ["sample", "runs/t", "--tokens=20"],
        ["inspect", "runs/t"],
        ["plot", "runs/t", "-o", "run.svg"],
        ["report", "runs/t", "-o", "run.html"],
    ):
        assert main(command) == 0, capsys.readouterr().err
    for page in ("run.svg", "run.html"):
        assert all(title in Path(page).read_text() for title in ("Votes over noise", "Credit of a token"))
    capsys.readouterr()
    assert main(["eval", "runs/t", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epoch"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--perturb=both"], "perturb is 'both'; it must be 'weights' or 'activations'."),
        (["--nudge=0"], "nudge is 0; it must be a whole number from 1 to 64."),
        (["--nudge=65"], "nudge is 65; it must be a whole number from 1 to 64."),
        (["--head-nudge=0"], "head_nudge is 0; it must be a whole number from 1 to 64."),
        (["--credit-decay=16"], "credit_decay is 16; it must be a whole number from 0 to 15."),
        (["--head-rule=none"], "head_rule is 'none'; it must be 'error' or 'perturb'."),
        (
            ["--sigma-shift=3"],
            "sigma_shift is 3; it must be 4 with perturb = 'activations', since it belongs to perturb",
        ),
        (["--no-fast-fitness"], "fast_fitness is False; it must be True with perturb = 'activations'"),
        (["--rank=2"], "rank is 2; it must be 1 with"),
        (
            ["--no-antithetic", "--group-size=130", "--population=260"],
            "group_size is 130; it must be at most 128 with antithetic = false.",
        ),
        (["--perturb=weights", "--no-antithetic"], "antithetic is False; it must be True with perturb = 'weights'"),
        (["--noise-reuse=0"], "noise_reuse is 0; it must be 1 with"),
        (["--perturb=weights", "--average"], "average is True; it must be False with perturb = 'weights'"),
        (["--num-perturbations=4"], "num_perturbations is 4; it must be 0 with"),
        (["--no-use-clt"], "use_clt is False; it must be True with"),
        (["--perturb=weights", "--nudge=3"], "nudge is 3; it must be 2 with perturb = 'weights', since it belongs to"),
        (
            ["--perturb=weights", "--head-rule=perturb"],
            "head_rule is 'perturb'; it must be 'error' with",
        ),
    ],
)
def test_mistakes(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.toml").write_text(CONFIG.to_toml())
    assert main(["train", "--config=c.toml", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert not Path("runs").exists()
