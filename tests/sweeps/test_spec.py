"""SWEEP.toml: its values, and every mistake as one sentence before the first trial."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nanoegg_mlx import Config, InputError
from nanoegg_mlx.cli import main
from nanoegg_mlx.sweeps.spec import read_spec
from nanoegg_mlx.sweeps.workers import thread_shares
from tests.sweeps.tiny import BASE, EPOCH, RANGES, write_sweep
from tests.tiny import work_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return work_in(tmp_path, monkeypatch)


def test_the_config_of_a_trial() -> None:
    decay = {"low": 0.5, "high": 4, "log": True, "times_epochs": True}
    spec = read_spec(write_sweep(ranges={**RANGES, "alpha_decay_timestep": decay, "group_size": 4}))
    values = {"alpha": 2.5, "sigma_shift": 2, "alpha_decay_timestep": 1.5}
    config = spec.config(values)
    base = Config.from_document(BASE, "base")
    expected = base.replace(
        alpha=2.5, sigma_shift=2, group_size=4, alpha_decay_timestep=18, num_epochs=12, validate_every=3,
        checkpoint_every=3,
    )  # fmt: skip
    assert config == expected
    assert [spec.step(config, epoch) for epoch in (3, 6, 9, 12)] == [1, 2, 3, 4]
    assert spec.name == "s" and spec.default_folder() == Path("checkpoints/sweep-s")


@pytest.mark.parametrize(("perturb", "factor"), [("weights", 2), ("activations", 3)])
def test_epochs_of_a_budget_of_work(perturb: str, factor: int) -> None:
    """Per token 12 D^2 for the layer and 256 D for the head; with nudged activations half of it again for the votes."""
    cost = EPOCH * (12 * 8 * 8 + 256 * 8) * factor // 2
    base = {**BASE, "evolution": {"population": 16, "perturb": perturb}}
    one = {"alpha": {"low": 1, "high": 2}}
    for amount, epochs in ((5 * cost, 5), (6 * cost - 1, 5)):
        spec = read_spec(write_sweep(base=base, ranges=one, budget={"multiply_adds": amount}))
        assert spec.config({"alpha": 1.0}).num_epochs == epochs
    with pytest.raises(InputError, match=rf"budget.multiply_adds is {cost - 1}; it must be at least {cost}"):
        read_spec(write_sweep(base=base, ranges=one, budget={"multiply_adds": cost - 1}))


def test_a_base_in_a_file_beside_the_sweep(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("base.toml").write_text(Config.from_document(BASE, "base").to_toml())
    write_sweep(base="base.toml")
    expected = asdict(read_spec("s.toml").base)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    found = asdict(read_spec("../s.toml").base)
    assert found == {**expected, "train": "../train.npy", "valid": "../valid.npy"}


def test_points_of_a_grid() -> None:
    ranges = {
        "alpha": {"low": 1, "high": 2, "step": 0.5},
        "sigma_shift": {"low": 3, "high": 4},
        "rank": {"choices": [1, 2]},
    }
    spec = read_spec(write_sweep(trials=None, sampler="grid", ranges=ranges))
    points = [(point["alpha"], point["sigma_shift"], point["rank"]) for point in spec.points()]
    assert points == [(a, s, r) for a in (1.0, 1.5, 2.0) for s in (3, 4) for r in (1, 2)]
    assert spec.trials == 12


def test_threads_of_workers() -> None:
    config = Config(threads=5)
    assert thread_shares(config, 2) == [3, 2] and thread_shares(config, 3) == [2, 2, 1]
    assert thread_shares(Config(threads=1), 2) == [1, 1]
    assert sum(thread_shares(Config(), 1)) >= 1


@pytest.mark.parametrize("name", ["quickstart", "reference"])
def test_the_sweeps_of_the_project(name: str, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are whole but for the text, which the tests do not have."""
    with pytest.raises(InputError, match=r"The token cache data/\w+-?\w+_train.npy .* does not exist"):
        read_spec(ROOT / "sweeps" / f"{name}.toml")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"ranges": {"alhpa": {"low": 1, "high": 2}}}, "[ranges] has an unknown field 'alhpa'"),
        ({"ranges": {"alpha": {"low": 3, "high": 2}}}, "ranges.alpha is empty: low is 3.0 and high is 2.0"),
        ({"ranges": {"alpha": {"low": 1, "hi": 2}}}, "ranges.alpha has an unknown key 'hi'"),
        ({"ranges": {"alpha": {"low": 1, "high": 99}}}, "alpha is 99.0; it must be a number above 0"),
        ({"ranges": {"alpha": {"low": 0, "high": 1, "log": True}}}, "ranges.alpha.low is 0.0; it must be above 0"),
        ({"ranges": {"alpha": {"low": 0, "high": 1, "step": 0.3}}}, "ranges.alpha.step is 0.3; it must divide"),
        ({"ranges": {"alpha": {"choices": []}}}, "ranges.alpha.choices is []"),
        ({"ranges": {"alpha": {"choices": [1, 1.0]}}}, "its values must be different"),
        ({"ranges": {"rank": {"low": 1, "high": 2.5}}}, "ranges.rank.high is 2.5; it must be a whole number"),
        ({"ranges": {"population": {"low": 2, "high": 64}}}, "ranges.population has odd values"),
        ({"ranges": {"population": {"choices": [16, 18]}, "group_size": 4}}, "population is 18; it must be a multiple"),
        ({"ranges": {"population": {"choices": [16, 4096]}}}, "budget.tokens is 1152; it must be at least 24576"),
        ({"ranges": {"tokens_per_update": {"choices": [6, 900]}}, "budget": {"tokens": 1e6}}, "3000 tokens"),
        ({"ranges": {"nudge": {"choices": [1, 2]}}}, "nudge is 1; it must be 2 with perturb = 'weights'"),
        ({"ranges": {"use_clt": {"low": 0, "high": 1}}}, "ranges.use_clt has no choices"),
        ({"ranges": {"seed": {"choices": [1, 2]}}}, "[ranges] has 'seed'; it must be left out"),
        ({"ranges": {"threads": {"choices": [1, 2]}}}, "ranges.threads is a range; it must be one value"),
        ({"ranges": {"rank": {"choices": [1], "times_epochs": True}}}, "only alpha_decay_timestep"),
        ({"ranges": {"alpha": 2.0}}, "fixed values only"),
        ({"ranges": None}, "has no ranges"),
        ({"budget": {"tokens": 1e6, "seconds": 5}}, "is tokens and seconds; it must be exactly one of"),
        ({"budget": {"tokens": -1}}, "budget.tokens is -1"),
        ({"budget": None}, "it must be exactly one of tokens or seconds or multiply_adds"),
        ({"trials": None}, "has no `trials`"),
        ({"trials": 0}, "trials is 0; it must be a whole number of at least 1"),
        ({"seeds": 1.5}, "seeds is 1.5; it must be a whole number"),
        ({"sampler": "tpee"}, "sampler is 'tpee'; it must be 'tpe' or 'random' or 'grid'"),
        ({"pruner": "mean"}, "pruner is 'mean'"),
        ({"sampler": "grid"}, "ranges.alpha has no step; with sampler"),
        ({"sampler": "grid", "ranges": {"rank": {"choices": [1, 2, 3]}}}, "since the grid has 3 points"),
        ({"name": "a/b"}, "name is 'a/b'; it must be a folder's name"),
        ({"epochs": 3}, "has an unknown key 'epochs'"),
        ({"base": "nowhere.toml"}, "nowhere.toml cannot be read"),
        ({"base": {"modle": {}}}, "'modle' at its top level"),
        ({"base": {**BASE, "data": {"train": "nowhere.npy"}}}, "nowhere.npy"),
    ],
)
def test_mistakes(changes: dict[str, Any], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", write_sweep(**changes)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and part in err, err
    assert not Path("checkpoints").exists()


def test_files_that_are_no_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.toml").write_text("trials = = 3")
    for name, part in (("bad.toml", "is not valid TOML"), ("none.toml", "cannot be read")):
        assert main(["sweep", name]) == 2
        assert part in capsys.readouterr().err
    assert main(["sweep", write_sweep(), "--workers", "0"]) == 2
    assert "--workers is 0" in capsys.readouterr().err
