"""Checkpoints: a folder with the parameters, the members' states, the config and the epoch.

    <run>/epoch-00000100/model.safetensors     13 int8 leaves, names of the spec
                         states.safetensors    `states`, (N, L, D) int8
                         config.toml           the run's whole config
                         checkpoint.json       format, epoch, validation figures

A checkpoint is written under a temporary name, flushed to disk and renamed, so a folder called `epoch-...` is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.params import Params, check_params
from nanoegg_mlx.train import Trainer

FORMAT = 1
_FOLDER = re.compile(r"epoch-(\d{8})$")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; `states` (N, L, D) int8 is read only when asked for."""

    path: Path
    config: Config
    epoch: int
    params: Params
    info: dict[str, Any]

    def states(self) -> np.ndarray:
        """Every member's hidden state, (N, L, D) int8. Raises InputError if the file is missing or damaged."""
        return np.array(_load_arrays(self.path / "states.safetensors").get("states"))


def make_run_folder(config: Config) -> Path:
    """Creates `<checkpoints>/<name>`, or with the first free number behind the name: no run is overwritten."""
    parent = Path(config.checkpoints)
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (config.name if number == 1 else f"{config.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        return folder


def save(run: Path, trainer: Trainer, info: Mapping[str, Any]) -> Path:
    """Writes the trainer's state as a checkpoint of the run, then removes all but the newest `keep`.

    Args:
        run: the run's folder.
        trainer: between two epochs.
        info: figures that go into checkpoint.json, JSON types.

    Returns:
        The checkpoint's folder. Raises OSError if it cannot be written; older checkpoints then stay.
    """
    folder = run / f"epoch-{trainer.epoch:08d}"
    if folder.exists():
        return folder
    temporary = run / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        mx.save_safetensors(str(temporary / "model.safetensors"), trainer.params)
        mx.save_safetensors(str(temporary / "states.safetensors"), {"states": trainer.states})
        (temporary / "config.toml").write_text(trainer.config.to_toml(), encoding="utf-8")
        about = {"format": FORMAT, "epoch": trainer.epoch, **info}
        (temporary / "checkpoint.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        temporary.rename(folder)
        _flush(run)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _folders(run)[: -trainer.config.keep]:
        shutil.rmtree(old)
    return folder


def load(path: str | Path) -> Checkpoint:
    """Opens a checkpoint, or the newest one of a run's folder.

    Raises:
        InputError: nothing there, a file missing or damaged, an unknown format, or parameters of another shape
            than the config's.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"There is no checkpoint or run folder {path}.")
    if not (path / "model.safetensors").exists():
        folders = _folders(path)
        if not folders:
            raise InputError(f"The folder {path} holds no checkpoint (a folder epoch-... with model.safetensors).")
        path = folders[-1]
    try:
        info = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        file_format, epoch = int(info["format"]), int(info["epoch"])
    except OSError as error:
        raise InputError(f"The checkpoint {path} has no readable checkpoint.json ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / 'checkpoint.json'} is damaged: it needs `format` and `epoch`.") from error
    if file_format != FORMAT:
        raise InputError(f"The checkpoint {path} has format {file_format}; this version reads format {FORMAT}.")
    config = Config.from_toml(path / "config.toml")
    params = _load_arrays(path / "model.safetensors")
    try:
        check_params(params, config)
    except InputError as error:
        raise InputError(f"The checkpoint {path} does not fit its config.toml: {error}") from error
    return Checkpoint(path, config, epoch, {name: params[name] for name in sorted(params)}, info)


def _folders(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted(path for path in run.iterdir() if _FOLDER.search(path.name) and path.is_dir())


def _load_arrays(file: Path) -> dict[str, mx.array]:
    try:
        arrays = mx.load(str(file))
        assert isinstance(arrays, dict)
        mx.eval(arrays)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{file} is missing, truncated or not a safetensors file.") from error
    return arrays


def _flush(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
