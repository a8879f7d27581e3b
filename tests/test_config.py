"""The configuration: TOML and back, and one sentence for every forbidden value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoegg_mlx import Config, InputError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


def test_defaults_are_the_references() -> None:
    config = Config()
    expected = {
        "seed": 0, "n_layer": 6, "n_embd": 256, "vocab_size": 256, "population": 1024, "num_epochs": 1000, "alpha": 4.0,
        "alpha_decay_timestep": 1000, "sigma_shift": 4, "use_clt": True, "fast_fitness": True, "noise_reuse": 1,
        "tokens_per_update": 100, "num_perturbations": 0, "group_size": 2, "rank": 1, "validate_every": 10,
        "validation_batch_size": 1024,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_presets_load(path: Path) -> None:
    assert Config.from_toml(path).name == path.stem


def test_nano_egg_preset_is_the_defaults() -> None:
    preset = Config.from_toml(CONFIGS[0].parent / "nano-egg.toml")
    assert preset == Config(name="nano-egg")


def test_toml_round_trip(tmp_path: Path) -> None:
    config = Config(seed=2**64 - 1, alpha=0.1, use_clt=False, name='a "b" é', n_embd=np.int64(48), population=48)
    (tmp_path / "c.toml").write_text(config.to_toml(), encoding="utf-8")
    assert Config.from_toml(tmp_path / "c.toml") == config
    assert Config.from_toml(tmp_path / "c.toml", rank=3) == config.replace(rank=3)


LANES: dict[str, Any] = {"perturb": "activations", "antithetic": False}


@pytest.mark.parametrize(
    ("changes", "cohort", "samples"),
    [
        ({}, 2, 1),
        ({"group_size": 8}, 2, 1),
        (LANES, 2, 1),
        ({**LANES, "group_size": 8}, 8, 7),
        ({**LANES, "group_size": 128}, 128, 127),
        ({**LANES, "group_size": 1024, "population": 24}, 24, 23),
    ],
)
def test_members_whose_scores_are_compared(changes: dict[str, Any], cohort: int, samples: int, tmp_path: Path) -> None:
    config = Config(**changes)
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert Config.from_toml(tmp_path / "c.toml") == config
    assert (config.cohort, config.samples) == (cohort, samples)
    assert Config(**changes).with_estimator("weights").antithetic


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"n_layer": 0}, ["n_layer is 0", "from 1 to 1024"]),
        ({"n_layer": True}, ["n_layer is True", "whole number"]),
        ({"n_layer": 2.5}, ["n_layer is 2.5", "whole number"]),
        ({"n_embd": "wide"}, ["n_embd is 'wide'", "whole number"]),
        ({"vocab_size": 257}, ["vocab_size is 257", "256"]),
        ({"seed": -1}, ["seed is -1", "from 0"]),
        ({"seed": 2**64}, ["seed", "18446744073709551615"]),
        ({"population": 7}, ["population is 7", "even"]),
        ({"population": 0}, ["population is 0", "from 2"]),
        ({"population": 10, "group_size": 4}, ["population is 10", "group_size = 4", "multiple"]),
        ({"group_size": 3}, ["group_size is 3", "even"]),
        ({"num_perturbations": 5}, ["num_perturbations is 5", "even"]),
        ({"rank": 0}, ["rank is 0", "from 1"]),
        ({"sigma_shift": -5}, ["sigma_shift is -5", "from -4 to 27"]),
        ({"alpha": 0}, ["alpha is 0", "above 0"]),
        ({"alpha": float("nan")}, ["alpha is nan", "above 0"]),
        ({"alpha_decay_timestep": 0}, ["alpha_decay_timestep is 0", "at least 1"]),
        ({"use_clt": 1}, ["use_clt is 1", "true or false"]),
        ({"noise_reuse": -1}, ["noise_reuse is -1", "at least 0"]),
        ({"sparse_embedding": 1}, ["sparse_embedding is 1", "true or false"]),
        (
            {"perturb": "activations", "sparse_embedding": True},
            ["sparse_embedding is True; it must be False with perturb = 'activations'"],
        ),
        ({"tokens_per_update": 0}, ["tokens_per_update is 0", "at least 1"]),
        ({"engine": "gpu"}, ["engine is 'gpu'", "'auto'", "'mlx'", "'cpu'"]),
        ({"name": "a/b"}, ["name is 'a/b'", "folder"]),
        ({"n_embd": 16385}, ["n_embd is 16385", "from 1 to 16384"]),
        ({"antithetic": False}, ["antithetic is False; it must be True with perturb = 'weights'"]),
        ({**LANES, "antithetic": 0}, ["antithetic is 0", "true or false"]),
        (
            {**LANES, "group_size": 130, "population": 260},
            ["group_size is 130; it must be at most 128 with antithetic = false"],
        ),
        ({**LANES, "group_size": 256, "population": 130}, ["group_size is 256", "at most 128"]),
        ({**LANES, "group_size": 3}, ["group_size is 3", "even"]),
        ({**LANES, "group_size": 4, "population": 10}, ["population is 10", "group_size = 4", "multiple"]),
    ],
)
def test_refused_values(values: dict, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Config(**values)
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message and message.endswith(".")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[model]\nn_layers = 3\n", ["'n_layers'", "n_layer"]),
        ("[run]\nn_layer = 3\n", ["'n_layer' in [run]", "must be in [model]"]),
        ("n_layer = 3\n", ["'n_layer' at its top level", "model, evolution, data, run"]),
        ("[model\n", ["not valid TOML"]),
        ("[model]\nn_layer = 0\n", ["n_layer is 0"]),
    ],
)
def test_refused_files(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        Config.from_toml(path)
    assert all(part in str(caught.value) for part in parts)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml cannot be read"):
        Config.from_toml(tmp_path / "nowhere.toml")


def test_options_of_perturbed_weights_come_back(tmp_path: Path) -> None:
    config = Config(fast_fitness=False, sparse_embedding=True, zero_head=True)
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert Config.from_toml(tmp_path / "c.toml") == config
    other = config.with_estimator("activations")
    assert (other.sparse_embedding, other.fast_fitness, other.zero_head) == (False, True, True)


def test_an_unknown_keyword_is_named() -> None:
    with pytest.raises(InputError, match="unknown key 'layers'"):
        Config().replace(layers=3)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(
    train=TEXT,
    name=TEXT.filter(lambda name: name not in ("", ".", "..") and "/" not in name),
    seed=st.integers(0, 2**64 - 1),
    alpha=st.floats(0, 64, exclude_min=True),
    timeout=st.floats(0, 86400, exclude_min=True),
    population=st.integers(1, 2**20).map(lambda pairs: 2 * pairs),
    use_clt=st.booleans(),
)
def test_every_config_comes_back(tmp_path_factory: pytest.TempPathFactory, **values: object) -> None:
    config = Config(**values)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("config") / "c.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert Config.from_toml(path) == config


def test_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf[model]\nn_layer = 3\n")
    assert Config.from_toml(tmp_path / "c.toml").n_layer == 3


def test_caches_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.npy").touch()
    (tmp_path / "set" / "c.toml").write_text('[data]\ntrain = "a.npy"\nvalid = "b.npy"\n')
    monkeypatch.chdir(tmp_path)
    config = Config.from_toml("set/c.toml")
    assert (config.train, config.valid) == ("set/a.npy", "b.npy")
    assert Config.from_toml("set/c.toml", train="x.npy").train == "x.npy"
    Path("a.npy").touch()
    assert Config.from_toml("set/c.toml").train == "a.npy"
