"""Checkpoints: loading restores every bit, damage is reported and skipped, nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Trainer
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.durable import sha256_of
from tests.traces import pseudo_text

CONFIG = Config(n_layer=2, n_embd=8, population=4, tokens_per_update=5, keep=2, name="t")


@pytest.fixture
def trainer() -> Trainer:
    trainer = Trainer(CONFIG, pseudo_text(300, 1))
    trainer.step()
    return trainer


def save(run: Path, trainer: Trainer, info: dict[str, float | None]) -> Path:
    """A checkpoint of the trainer's state."""
    state = {"params": trainer.params, "states": trainer.states, "epoch": trainer.epoch}
    return checkpoint.save(run, **state, config=CONFIG, info=info)


def test_round_trip(tmp_path: Path, trainer: Trainer) -> None:
    folder = save(tmp_path, trainer, {"validation": 7.5})
    assert folder.name == "epoch-00000001"
    for path in (folder, tmp_path, tmp_path / "latest", tmp_path / "best"):
        loaded = checkpoint.load(path)
        assert (loaded.path.resolve(), loaded.config, loaded.epoch) == (folder.resolve(), CONFIG, 1)
        assert loaded.info["validation"] == 7.5
        assert list(loaded.params) == sorted(trainer.params)
        for name, value in trainer.params.items():
            assert loaded.params[name].dtype == mx.int8
            assert np.array_equal(np.array(loaded.params[name]), np.array(value))
        assert np.array_equal(loaded.states(), np.array(trainer.states))


def test_the_newest_and_the_best_are_kept(tmp_path: Path, trainer: Trainer) -> None:
    for figure in (5.0, 3.0, 4.0, None, 3.5):
        save(tmp_path, trainer, {"validation": figure})
        assert (tmp_path / "latest").resolve().name == f"epoch-{trainer.epoch:08d}"
        trainer.step()
    assert [path.name for path in checkpoint.folders(tmp_path)] == [f"epoch-0000000{epoch}" for epoch in (2, 4, 5)]
    assert (tmp_path / "best").resolve().name == "epoch-00000002"
    assert len(list(tmp_path.iterdir())) == 5


def test_damage_is_reported_and_skipped(tmp_path: Path, trainer: Trainer) -> None:
    older = save(tmp_path, trainer, {})
    trainer.step()
    folder = save(tmp_path, trainer, {})
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def damaged(name: str, content: bytes | None) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{folder.name}.* is damaged: {name}") as caught:
            checkpoint.load(folder)
        warnings: list[str] = []
        assert checkpoint.load(tmp_path, warnings.append).path == older
        assert warnings == [f"{caught.value} Using the one before it, {older.name}."]
        (folder / name).write_bytes(whole[name])

    for name, content in whole.items():
        for size in (0, len(content) // 2, len(content) - 1):
            damaged(name, content[:size])
        damaged(name, None)
        for position in (0, len(content) // 3, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[position] ^= 1
            damaged(name, bytes(flipped))
    damaged("checkpoint.json", b"[]")
    assert checkpoint.load(tmp_path, pytest.fail).epoch == 2


def test_averaged_parameters(tmp_path: Path) -> None:
    config = CONFIG.replace(perturb="activations", average=True)
    trainer = Trainer(config, pseudo_text(300, 1), epoch=40)
    trainer.step()
    assert trainer.sums is not None

    def loaded(params: Params, sums: Params) -> checkpoint.Checkpoint:
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        run.mkdir()
        average, states = (params, sums), trainer.states
        checkpoint.save(run, params=trainer.model, average=average, states=states, epoch=41, config=config, info={})
        return checkpoint.load(run, pytest.fail)

    opened = loaded(trainer.params, trainer.sums)
    kept = (opened.params, *opened.moving())
    for tree, expected in zip(kept, (trainer.model, trainer.params, trainer.sums), strict=True):
        assert tree is not None and list(tree) == sorted(expected)
        assert all(np.array_equal(np.array(tree[name]), np.array(expected[name])) for name in expected)
    assert np.array_equal(opened.states(), np.array(trainer.states))
    for params, sums, message in (
        ({}, trainer.sums, "The leaf 'blocks.att.Uf' is missing"),
        (trainer.sums, trainer.sums, "Parameter 'blocks.att.Uf' is .*int16; it must be int8"),
        (trainer.params, {}, "The leaf 'blocks.att.Uf' is missing"),
        (trainer.params, trainer.params, "The sum of parameter 'blocks.att.Uf' is .*int8; it must be int16"),
        (trainer.params, {**trainer.sums, "emb": trainer.sums["emb"][:, 1:]}, "The shape of parameter 'emb' is"),
    ):
        with pytest.raises(InputError, match=rf"states\.safetensors does not fit its config\.toml: {message}"):
            loaded(params, sums).moving()


def test_without_a_whole_checkpoint(tmp_path: Path, trainer: Trainer) -> None:
    for _ in range(2):
        (save(tmp_path, trainer, {}) / "model.safetensors").unlink()
        trainer.step()
    warnings: list[str] = []
    with pytest.raises(InputError, match=r"epoch-00000001 is damaged: model\.safetensors"):
        checkpoint.load(tmp_path, warnings.append)
    assert len(warnings) == 1


def test_files_that_do_not_fit(tmp_path: Path, trainer: Trainer) -> None:
    folder = save(tmp_path, trainer, {})
    about = json.loads((folder / "checkpoint.json").read_text())
    (folder / "config.toml").write_text(CONFIG.replace(n_embd=9).to_toml())
    about["files"]["config.toml"] = sha256_of(folder / "config.toml")
    (folder / "checkpoint.json").write_text(json.dumps({**about, "sha256": checkpoint._seal(about)}))
    with pytest.raises(InputError, match="does not fit its config"):
        checkpoint.load(folder)
    (folder / "checkpoint.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(InputError, match="is 99; it must be 2"):
        checkpoint.load(folder)


def test_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no checkpoint; it must have"):
        checkpoint.load(tmp_path)
    with pytest.raises(InputError, match="does not exist; it must be a checkpoint's or a run's"):
        checkpoint.load(tmp_path / "nowhere")


def rewritten(folder: Path, changes: dict[str, object]) -> None:
    """Changes checkpoint.json, with a right seal: another program wrote it."""
    path = folder / "checkpoint.json"
    about = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**about, "sha256": checkpoint._seal(about)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": "1"}, {"epoch": 2**70}, {"epoch": True}, {"tokens": -1}, {"tokens": 1.5}, {"validation": "low"},
        {"validation": float("inf")}, {"seconds": []}, {"seconds": None}, {"files": []}, {"files": {"config.toml": 7}},
    ],
    ids=str,
)  # fmt: skip
def test_figures_of_other_types_are_damage(tmp_path: Path, trainer: Trainer, changes: dict[str, object]) -> None:
    older = save(tmp_path, trainer, {"validation": 3.0})
    trainer.step()
    folder = save(tmp_path, trainer, {"validation": 2.0})
    rewritten(folder, changes)
    with pytest.raises(InputError, match=r"is damaged: checkpoint\.json has changed"):
        checkpoint.load(folder)
    assert checkpoint.load(tmp_path, lambda text: None).path == older
    assert checkpoint.named(tmp_path)["best"] == older
    trainer.step()
    save(tmp_path, trainer, {"validation": 4.0})
    assert (tmp_path / "best").resolve() == older


@pytest.mark.parametrize("content", [b"[" * 100_000, b"null", b"[1]", b"\xff", b"{", b'{"sha256": NaN}'])
def test_a_checkpoint_json_of_anything(tmp_path: Path, trainer: Trainer, content: bytes) -> None:
    folder = save(tmp_path, trainer, {})
    (folder / "checkpoint.json").write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged: checkpoint\.json has changed"):
        checkpoint.load(folder)


def test_states_and_parameters_of_other_shapes(tmp_path: Path, trainer: Trainer) -> None:
    folder = save(tmp_path, trainer, {})
    lowest = np.array(trainer.states)
    lowest[0, 0, 0] = -128
    for name, value in (("other", trainer.states), ("states", trainer.states[1:]), ("states", lowest.astype(np.int16)),
                        ("states", lowest)):  # fmt: skip
        mx.save_safetensors(str(folder / "states.safetensors"), {name: mx.array(value)})
        with pytest.raises(InputError, match=r"states\.safetensors (does not fit its config|has an entry -128)"):
            checkpoint.Checkpoint(folder, CONFIG, 1, {}, {}).states()
    head = np.array(trainer.params["head"])
    head[0, 0] = -128
    with pytest.raises(InputError, match=r"'head' has an entry -128"):
        Trainer(CONFIG, pseudo_text(300, 1), params={**trainer.params, "head": mx.array(head)})
