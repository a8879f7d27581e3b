"""Checkpoints: what is saved comes back bit for bit, damage is named, nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Trainer, checkpoint, init_params
from tests.traces import pseudo_text

CONFIG = Config(n_layer=2, n_embd=8, population=4, tokens_per_update=5, keep=2, name="t")


@pytest.fixture
def trainer() -> Trainer:
    trainer = Trainer(CONFIG, pseudo_text(300, 1))
    trainer.step()
    return trainer


def test_round_trip(tmp_path: Path, trainer: Trainer) -> None:
    folder = checkpoint.save(tmp_path, trainer, {"validation": 7.5})
    assert folder.name == "epoch-00000001"
    for path in (folder, tmp_path):
        loaded = checkpoint.load(path)
        assert (loaded.path, loaded.config, loaded.epoch) == (folder, CONFIG, 1)
        assert loaded.info["validation"] == 7.5
        assert list(loaded.params) == sorted(trainer.params)
        for name, value in trainer.params.items():
            assert loaded.params[name].dtype == mx.int8
            assert np.array_equal(np.array(loaded.params[name]), np.array(value))
        assert np.array_equal(loaded.states(), np.array(trainer.states))


def test_the_newest_are_kept(tmp_path: Path, trainer: Trainer) -> None:
    for _ in range(4):
        checkpoint.save(tmp_path, trainer, {})
        trainer.step()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-00000003", "epoch-00000004"]
    assert checkpoint.load(tmp_path).epoch == 4


def test_run_folders_are_new(tmp_path: Path) -> None:
    config = CONFIG.replace(checkpoints=str(tmp_path / "deep" / "runs"))
    names = [checkpoint.make_run_folder(config).name for _ in range(3)]
    assert names == ["t", "t-2", "t-3"]
    assert Config.from_toml(tmp_path / "deep" / "runs" / "t-2" / "config.toml") == config


def test_a_failed_save_leaves_nothing(tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, trainer, {})
    trainer.step()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(tmp_path, trainer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00000001"]
    assert checkpoint.load(tmp_path).epoch == 1


def test_damage_is_named(tmp_path: Path, trainer: Trainer) -> None:
    folder = checkpoint.save(tmp_path, trainer, {})
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            checkpoint.load(folder).states()
        for name, content in whole.items():
            (folder / name).write_bytes(content)

    for name in ("model.safetensors", "states.safetensors"):
        for size in (0, 7, 100, len(whole[name]) - 1):
            (folder / name).write_bytes(whole[name][:size])
            refused(name)
    (folder / "states.safetensors").unlink()
    refused("states.safetensors")
    (folder / "checkpoint.json").unlink()
    refused(r"checkpoint\.json")
    (folder / "checkpoint.json").write_text("{")
    refused(r"checkpoint\.json is damaged")
    (folder / "checkpoint.json").write_text(json.dumps({"format": 99, "epoch": 1}))
    refused("format 99")
    (folder / "config.toml").write_text("[model]\nn_layer = 0\n")
    refused("n_layer = 0")
    (folder / "config.toml").write_text(CONFIG.replace(n_embd=9).to_toml())
    refused("does not fit its config")
    mx.save_safetensors(str(folder / "model.safetensors"), init_params(CONFIG.replace(n_layer=1)))
    refused("does not fit its config")
    assert checkpoint.load(folder).epoch == 1


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    with pytest.raises(InputError, match="no checkpoint or run folder"):
        checkpoint.load(tmp_path / "nowhere")
