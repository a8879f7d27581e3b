"""Runs whose folder was copied, edited, misnamed or lies on a file system that lacks operations."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError
from nanoegg_mlx.cli import main
from nanoegg_mlx.store import checkpoint, durable
from nanoegg_mlx.store.metrics import read_metrics
from tests.tiny import branch, resume, train, work_in
from tests.traces import ENGINES

CONFIG = Config(
    n_layer=1, n_embd=8, population=16, tokens_per_update=6, train="train.npy", valid="valid.npy", checkpoints="runs",
    name="t", num_epochs=6, validate_every=3, validation_batch_size=8, checkpoint_every=2, engine=ENGINES[-1],
)  # fmt: skip
FOLDER = Path("runs/t")


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a small corpus, to work in."""
    return work_in(tmp_path, monkeypatch)


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder but the lock, which holds a process number."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def params(folder: Path) -> dict[str, bytes]:
    opened = checkpoint.load(folder, pytest.fail)
    return {name: np.array(value).tobytes() for name, value in opened.params.items()}


@pytest.fixture
def expected() -> dict[str, bytes]:
    """The parameters of a run of 10 epochs that nothing happens to."""
    train(CONFIG.replace(name="whole", num_epochs=10))
    return params(Path("runs/whole"))


@pytest.mark.parametrize("name", ["latest", "best", "epoch-00000006"])
def test_resume_of_the_newest_checkpoint(name: str, expected: dict[str, bytes]) -> None:
    """The path that every run prints at its end: its run is resumed, and the checkpoint stays as it is."""
    train(CONFIG)
    if name == "best":  # the best is the newest here, or a link to it is made
        (FOLDER / "best").unlink()
        (FOLDER / "best").symlink_to("epoch-00000006")
    sealed = content(FOLDER / "epoch-00000006")
    resume(FOLDER / name, {"num_epochs": 10, "keep": 9})
    assert params(FOLDER) == expected
    assert content(FOLDER / "epoch-00000006") == sealed
    assert not list((FOLDER / "epoch-00000006").glob("epoch-*"))


def test_resume_of_an_older_checkpoint_names_branch() -> None:
    train(CONFIG)
    before = content(FOLDER)
    with pytest.raises(InputError, match=r"not the newest checkpoint of the run runs/t; .* `--branch runs/t@4`"):
        resume(FOLDER / "epoch-00000004", {"num_epochs": 10})
    assert content(FOLDER) == before
    with pytest.raises(InputError, match=r"is a checkpoint; --branch must name its run and an epoch: runs/t@4"):
        branch(FOLDER / "epoch-00000004", 4, {})


def test_nothing_is_written_inside_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG)
    before = content(FOLDER)
    for command in (
        ["plot", str(FOLDER), "-o", f"{FOLDER}/latest/a.png"],
        ["report", str(FOLDER), "-o", f"{FOLDER}/epoch-00000004/a.html"],
        ["replay", str(FOLDER), "--epoch=3", "-o", f"{FOLDER}/latest/a.safetensors"],
    ):
        assert main(command) == 2
        assert "is inside the checkpoint" in capsys.readouterr().err
    with pytest.raises(InputError, match="is inside the checkpoint"):
        train(CONFIG.replace(checkpoints=f"{FOLDER}/latest"))
    assert content(FOLDER) == before


@pytest.mark.parametrize("kind", ["folders", "files", "missing"])
def test_a_copied_run(kind: str, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """cp -rL and scp -r make folders of the links, archives make text files, object storage drops them."""
    train(CONFIG)
    copy = Path("runs/copy")
    shutil.copytree(FOLDER, copy, symlinks=kind != "folders")
    for name in ("latest", "best"):
        if kind != "folders":
            target = (copy / name).readlink()
            (copy / name).unlink()
            if kind == "files":
                (copy / name).write_text(str(target))
    for name in ("latest", "best"):
        assert main(["eval", str(copy / name)]) == 0
    assert main(["report", str(copy), "-o", "copy.html"]) == 0
    assert ">latest" in Path("copy.html").read_text()
    resume(copy / "latest", {"num_epochs": 10})
    assert params(copy) == expected
    assert (copy / "latest").resolve().name == "epoch-00000010"
    assert not list(copy.glob(".*.old"))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [("seed", 7, False), ("alpha", 2.0, False), ("perturb", "activations", False), ("num_epochs", 10, True)],
)
def test_an_edited_config(field: str, value: Any, allowed: bool, expected: dict[str, bytes]) -> None:
    train(CONFIG)
    (FOLDER / "config.toml").write_text(CONFIG.replace(**{field: value}).to_toml())
    if allowed:
        resume(FOLDER, {})
        assert params(FOLDER) == expected
        return
    before = content(FOLDER)
    with pytest.raises(InputError, match=rf"{field} is {value!r}; it must be {getattr(CONFIG, field)!r}"):
        resume(FOLDER, {"num_epochs": 10})
    assert content(FOLDER) == before


def test_a_run_without_its_config(expected: dict[str, bytes]) -> None:
    """The checkpoint has it too."""
    train(CONFIG)
    (FOLDER / "config.toml").unlink()
    resume(FOLDER, {"num_epochs": 10})
    assert params(FOLDER) == expected


@pytest.mark.parametrize("name", ["egg\U0001f95a", "a\nb", 'a "b" \\c', "\u202e", "é\u0301", " spaces "])
def test_unusual_names(name: str) -> None:
    train(CONFIG.replace(name=name))
    folder = Path("runs", name)
    assert Config.from_toml(folder / "config.toml").name == name
    resume(folder, {"num_epochs": 8})
    assert checkpoint.load(folder, pytest.fail).epoch == 8
    assert main(["replay", str(folder), "--verify"]) == 0


@pytest.mark.parametrize("text", [os.fsdecode(b"a\xffb"), "a\0b", "\ud800"])
@pytest.mark.parametrize("field", ["name", "train", "valid", "checkpoints"])
def test_text_that_cannot_be_written(field: str, text: str) -> None:
    with pytest.raises(InputError, match=rf"{field} is .*; it must be text that UTF-8 can encode, without a NUL"):
        CONFIG.replace(**{field: text})
    assert not Path("runs").exists()


def unsupported(code: int) -> Any:
    def call(*arguments: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize(
    ("owner", "call", "code", "warning"),
    [
        (fcntl, "flock", errno.ENOSYS, "without locks"),
        (fcntl, "flock", errno.ENOLCK, "without locks"),
        (fcntl, "flock", errno.EOPNOTSUPP, "without locks"),
        (os, "symlink", errno.EPERM, "without symbolic links"),
        (os, "symlink", errno.EOPNOTSUPP, "without symbolic links"),
        (os, "ftruncate", errno.EPERM, ""),
    ],
)
def test_file_systems_that_lack_an_operation(
    owner: Any,
    call: str,
    code: int,
    warning: str,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(durable, "_warned", set())
    monkeypatch.setattr(owner, call, unsupported(code))
    train(CONFIG)
    shutil.rmtree(FOLDER / "epoch-00000006")  # so that the logs have to be cut back
    resume(FOLDER, {"num_epochs": 10})
    assert params(FOLDER) == expected
    assert [line["epoch"] for line in read_metrics(FOLDER / "metrics.jsonl")] == list(range(11))
    assert main(["eval", str(FOLDER / "best")]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == bool(warning) and all(warning in line for line in warnings)


def test_folders_that_cannot_be_flushed(
    expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to know a folder's descriptor")
    monkeypatch.setattr(durable, "_warned", set())
    monkeypatch.setattr(os, "fsync", fsync)
    train(CONFIG)
    resume(FOLDER, {"num_epochs": 10})
    assert params(FOLDER) == expected
    assert capsys.readouterr().err.count("a power cut may undo renames") == 1
