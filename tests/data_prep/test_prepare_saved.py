"""Data sets of the `datasets` library in local folders, and the hub's where the machine gets in the way."""

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.saved import find_splits
from data_prep.sources import hub_source

SPLITS = {"train": ["a", "b", "c"] * 9, "validation": ["v1", "v2"], "test": ["t"]}


@pytest.fixture(scope="module")
def data() -> datasets.DatasetDict:
    datasets.disable_progress_bars()
    return datasets.DatasetDict({k: datasets.Dataset.from_dict({"text": v}) for k, v in SPLITS.items()})


def caches(folder: Path, out: Path, *options: str) -> dict[str, list[str]]:
    assert main(["--source", str(folder), "--out", str(out), "--name", "x", *options]) == 0
    found = {}
    for split in ("train", "valid", "test"):
        if (out / f"x_{split}.npy").exists():
            found[split] = np.load(out / f"x_{split}.npy").tobytes().decode().split("\0")[1:]
    return found


EXPECTED = {"train": SPLITS["train"], "valid": SPLITS["validation"], "test": SPLITS["test"]}


def test_save_to_disk(tmp_path, data):
    data.save_to_disk(tmp_path / "dict", num_shards={"train": 3, "validation": 1, "test": 1})
    (tmp_path / "dict" / "README.md").write_text("not a document")
    assert caches(tmp_path / "dict", tmp_path / "o1") == EXPECTED
    named = caches(
        tmp_path / "dict", tmp_path / "o2", "--train", "validation", "--valid", "test", "--test-fraction", "0"
    )
    assert named == {"train": ["v1", "v2"], "valid": ["t"]}

    data["train"].save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "README.md").write_text("not a document")
    found = caches(tmp_path / "one", tmp_path / "o3", "--valid-fraction", "0.4", "--test-fraction", "0")
    assert sorted(found["train"] + found["valid"]) == sorted(SPLITS["train"]) and found["valid"]


def test_caches_of_the_hub_and_of_datasets(tmp_path, data):
    repository, commit = tmp_path / "hub" / "datasets--me--toy", "a" * 40
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "refs", repository / "blobs", snapshot / "data"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for split, rows in data.items():
        rows.to_parquet(repository / "blobs" / split)
        os.symlink(f"../../../blobs/{split}", snapshot / "data" / f"{split}-00000-of-00001.parquet")
    (snapshot / "README.md").write_text("not a document")
    for number, folder in enumerate((tmp_path / "hub", repository, snapshot)):
        assert caches(folder, tmp_path / f"o{number}") == EXPECTED
    assert main(["--source", str(snapshot), "--out", str(tmp_path / "named")]) == 0
    assert (tmp_path / "named" / "toy_train.npy").exists()

    datasets.load_dataset(str(snapshot), cache_dir=str(tmp_path / "built"))
    assert caches(tmp_path / "built", tmp_path / "o4") == EXPECTED


def test_damaged_indexes_and_missing_files(tmp_path, data, capsys):
    data["train"].save_to_disk(tmp_path / "one")
    state = tmp_path / "one" / "state.json"
    for content in ("", "[]", "{}", '{"_data_files": [{"filename": "../../x"}]}', "[" * 99999):
        state.write_text(content)
        assert main(["--source", str(tmp_path / "one"), "--out", str(tmp_path / "out")]) == 2
        assert "state.json is damaged; it must be the index" in capsys.readouterr().err
    state.write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    assert main(["--source", str(tmp_path / "one"), "--out", str(tmp_path / "out")]) == 2
    assert "gone.arrow does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert find_splits(tmp_path / "empty") is None and find_splits(tmp_path / "gone") is None


def serve(monkeypatch: pytest.MonkeyPatch, folder: Path, cache: Path) -> list[str]:
    """Makes load_dataset read a folder, whatever it is asked for. Returns the names asked for."""
    asked: list[str] = []
    load_dataset = datasets.load_dataset

    def load(path: str, name: str | None = None, **_: object) -> datasets.DatasetDict:
        asked.append(path)
        return load_dataset(str(folder), name=name, cache_dir=str(cache))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    for split, rows in SPLITS.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_local_folder_does_not_stand_in_for_the_hub(tmp_path, toy, monkeypatch):
    asked = serve(monkeypatch, toy, tmp_path / "cache")
    list(Path(".").iterdir())
    for _ in range(2):
        source = hub_source("me/toy", "text", None, None, {}, {})
        list(source.read(source))
        Path("me/toy").mkdir(parents=True, exist_ok=True)
    assert asked == ["me/toy", "hf://datasets/me/toy"]


def test_data_sets_in_memory(tmp_path, toy, monkeypatch):
    serve(monkeypatch, toy, tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 10**9)
    assert main(["--source", "hub:me/toy", "--out", "out", "--name", "x"]) == 0
    assert np.load("out/x_train.npy").tobytes().decode().split("\0")[1:] == SPLITS["train"]


def test_all_configurations_are_listed(tmp_path, toy, monkeypatch, capsys):
    serve(monkeypatch, toy, tmp_path / "cache")
    names = [f"configuration_{i}_{'x' * 40}" for i in range(9)]
    lines = [f"- config_name: {name}\n  data_files: '*.jsonl'\n" for name in names]
    (toy / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n")
    listed = ", ".join(map(repr, names))
    for options, found in ([], "has several configurations"), (["--config", "y"], "has no configuration 'y'"):
        assert main(["--source", "hub:me/toy", "--out", "out", *options]) == 2
        message = f"error: The data set me/toy {found}; --config must name one of them: {listed}.\n"
        assert capsys.readouterr().err == message
