"""Exports for the hub: the same arrays, a card that the hub reads, and targets that are new, whole and all checked."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from huggingface_hub import ModelCard

from nanoegg_mlx import Config, InputError, generate, init_params
from nanoegg_mlx.cli import main
from nanoegg_mlx.core.params import model_hash
from nanoegg_mlx.measure.export import Targets, export
from nanoegg_mlx.store import checkpoint, durable
from nanoegg_mlx.store.checkpoint import Checkpoint

CONFIG = Config(
    n_layer=2, n_embd=6, population=4, seed=3, name='e"gg|\\ 🥚\n# x', train="/home/me/secret/a b_train.npy",
    valid="/home/me/secret/it's: [a].npy", perturb="activations",
)  # fmt: skip
INFO: dict[str, Any] = {
    "tokens": 12345, "seconds": 1.5, "validation": 2.6213125, "validation_exact": 2.65,
    "data": {"train": {"tokens": 999, "sha256": "ab" * 32}, "valid": {"tokens": 55, "sha256": "cd" * 32}},
}  # fmt: skip


def stored(run: Path, config: Config = CONFIG, epoch: int = 7, **info: Any) -> Checkpoint:
    """A checkpoint on disk."""
    run.mkdir(parents=True, exist_ok=True)
    states = np.zeros((config.population, config.n_layer, config.n_embd), np.int8)
    params = init_params(config)
    folder = checkpoint.save(run, params=params, states=states, epoch=epoch, config=config, info={**INFO, **info})
    return checkpoint.open_whole(folder)


def test_the_same_arrays_everywhere(tmp_path: Path) -> None:
    opened = stored(tmp_path / "run")
    targets = Targets(safetensors=tmp_path / "m.st", npz=tmp_path / "m.npz", hf_folder=tmp_path / "hub")
    written = export(opened, targets, "mit")
    files = ["m.st", "m.st.md", "m.npz", "m.npz.md", "hub/README.md", "hub/config.json", "hub/model.safetensors"]
    assert sorted(written) == sorted(tmp_path / name for name in files)
    assert all(path.stat().st_size == size for path, size in written.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "m.npz", "m.npz.md", "m.st", "m.st.md", "run"]
    arrays, metadata = mx.load(str(tmp_path / "m.st"), format="safetensors", return_metadata=True)
    with np.load(tmp_path / "m.npz") as archive:
        for name, value in opened.params.items():
            assert arrays[name].dtype == mx.int8 and archive[name].dtype == np.int8
            assert np.array_equal(np.array(arrays[name]), np.array(value))
            assert np.array_equal(archive[name], np.array(value))
        assert set(archive) == set(arrays) == set(opened.params)
    card = (tmp_path / "hub/README.md").read_text()
    assert metadata["model_card"] == card == (tmp_path / "m.st.md").read_text() == (tmp_path / "m.npz.md").read_text()
    assert (metadata["format"], metadata["model_type"], metadata["epoch"]) == ("mlx", "nanoegg", "7")
    assert (tmp_path / "hub/model.safetensors").read_bytes() == (tmp_path / "m.st").read_bytes()
    about = json.loads((tmp_path / "hub/config.json").read_text())
    assert about == json.loads(metadata["config"])
    assert (about["model_type"], about["n_layer"], about["n_embd"], about["vocab_size"]) == ("nanoegg", 2, 6, 256)
    assert about["sha256"] == model_hash(opened.params, CONFIG).hex()
    assert about["config"]["nudge"] == 2 and "sigma_shift" not in about["config"]


def test_the_hub_reads_the_card(tmp_path: Path) -> None:
    opened = stored(tmp_path)
    export(opened, Targets(hf_folder=tmp_path / "hub"), "apache-2.0")
    card = ModelCard.load(tmp_path / "hub/README.md")
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "nanoegg-mlx", "text-generation")
    assert data.model_name == CONFIG.name and "evolution-strategies" in data.tags
    results = {result.metric_type: result for result in data.eval_results}
    assert results["bits_per_byte"].metric_value == 2.6213125 and results["exact_bits_per_byte"].metric_value == 2.65
    assert results["bits_per_byte"].dataset_name == "it's: [a].npy"
    everything = b"".join(path.read_bytes() for path in (tmp_path / "hub").iterdir())
    assert b"secret" not in everything
    for part in ("2.6213", "12,345 bytes", "2 layers of width 6", "ab" * 32, "| `nudge` | 2 |", "apache-2.0"):
        assert part in card.text, part


def test_the_usage_in_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    opened = stored(tmp_path)
    export(opened, Targets(hf_folder=tmp_path / "hub"))
    code = (tmp_path / "hub/README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "hub")
    exec(code, {})
    expected = bytes(generate(opened.params, opened.config, b"The ", tokens=200)).decode(errors="replace")
    assert capsys.readouterr().out == expected + "\n"


def test_a_folder_for_the_hub_in_place_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = stored(tmp_path / "run", CONFIG.replace(perturb="weights"))
    export(opened, Targets(hf_folder=tmp_path / "hub"))
    loaded = checkpoint.load(tmp_path / "hub")
    assert (loaded.epoch, loaded.info["validation"]["bits_per_byte"]) == (7, 2.6213125)
    assert all(np.array_equal(np.array(loaded.params[name]), np.array(opened.params[name])) for name in opened.params)
    outputs = []
    for folder in ("run", "hub"):
        assert main(["sample", str(tmp_path / folder), "--tokens", "40", "--ignore-end"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0]
    with pytest.raises(InputError, match=r"states.safetensors is missing"):
        loaded.states()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model_type": "gpt2"}, "config.json is of another program; its model_type must be 'nanoegg'"),
        ({"epoch": -1}, "config.json is damaged: its epoch must be as it was written"),
        ({"sha256": "00"}, "model.safetensors has changed"),
        ({"config": {"layers": 3}}, "config.json is damaged"),
        ({"config": {"n_layer": 3, "n_embd": 6}}, "must be (3, 6, 6)"),
    ],
)
def test_a_damaged_folder_of_the_hub(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    opened = stored(tmp_path / "run")
    export(opened, Targets(hf_folder=tmp_path / "hub"))
    path = tmp_path / "hub/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=re.escape(part)):
        checkpoint.load(tmp_path / "hub")


def test_a_card_without_figures_or_licence(tmp_path: Path) -> None:
    opened = stored(tmp_path, CONFIG.with_estimator("weights"), validation=None, validation_exact=None, data="?")
    export(opened, Targets(npz=tmp_path / "m.npz"))
    card = ModelCard.load(tmp_path / "m.npz.md")
    assert card.data.license == "unknown" and card.data.eval_results is None
    assert "was not validated" in card.text and "has not chosen one" in card.text and "EGGROLL" in card.text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--c", str(tmp_path / "m.c"), "--npz", str(tmp_path / "m.npz")]) == 0
    out = capsys.readouterr().out
    assert "epoch-00000007 (epoch 7)" in out and f"{(tmp_path / 'm.c').stat().st_size:,} bytes" in out
    # 2 x (4 x 36 + 4 x 6 + 2 x 4 x 36) + 2 x 256 x 6 + 6
    assert "3,990 of weights" in out and "12 of state, 256 of logits" in out


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "must be one or more of --c, --safetensors, --npz and --hf-folder"),
        (["--c", "old"], "old exists; a target of an export must be a new one"),
        (["--hf-folder", "old"], "old exists"),
        (["--safetensors", "old.link"], "old.link exists"),
        (["--safetensors", "card"], "card.md exists"),
        (["--npz", "none/m.npz"], "none does not exist"),
        (["--c", "a", "--npz", "b", "--safetensors", "b"], "b is the name of two targets"),
        (["--c", "run/epoch-00000007/m.c"], "must be outside of checkpoints"),
        (["--npz", "m", "--license", "My Licence"], "The licence is 'My Licence'"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    stored(Path("run"))
    Path("old").write_text("mine")
    Path("card.md").write_text("mine")
    os.symlink("nowhere", "old.link")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(["export", "run", "--hf-folder", "new", *options][: None if options else 2]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and part in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before and Path("old").read_text() == "mine"


def test_checkpoints_that_are_not_exported(tmp_path: Path) -> None:
    untrained = stored(tmp_path / "a", epoch=0)
    with pytest.raises(InputError, match="is untrained, at epoch 0; it must be at epoch 1 or later"):
        export(untrained, Targets(npz=tmp_path / "m.npz"))
    digits = stored(tmp_path / "b", Config(n_layer=1, n_embd=4, vocab_size=10, population=2))
    with pytest.raises(InputError, match="vocab_size is 10; it must be 256"):
        export(digits, Targets(c=tmp_path / "m.c", npz=tmp_path / "m.npz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_failing_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = stored(tmp_path / "run")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "link", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(durable.os, call, full)
            targets = Targets(c=tmp_path / "m.c") if call == "link" else Targets(hf_folder=tmp_path / "hub")
            with pytest.raises(OSError, match="No space left"):
                export(opened, targets)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_new_file_never_replaces_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the name came into use after the check, and where the file system has no links."""
    durable.create_file(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        durable.create_file(tmp_path / "a", b"2")

    def unsupported(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(durable.os, "link", unsupported)
    durable.create_file(tmp_path / "b", b"3")
    with pytest.raises(FileExistsError):
        durable.create_file(tmp_path / "a", b"2")
    durable.create_folder(tmp_path / "folder", {"x": b"4"})
    with pytest.raises(OSError):
        durable.create_folder(tmp_path / "folder", {"x": b"5"})
    assert [(tmp_path / name).read_bytes() for name in ("a", "b", "folder/x")] == [b"1", b"3", b"4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "folder"]
