"""Checkpoints: a folder with everything that the next epoch depends on, written atomically and verified when read.

    <run>/epoch-00000100/model.safetensors     13 int8 leaves, names of the spec
                         states.safetensors    `states`, (N, L, D) int8; with `average`, where the model is an
                                               average, also the leaves that epochs move, `params.NAME` int8, and
                                               the sums of the average, `sums.NAME` int16
                         config.toml           the run's whole config
                         checkpoint.json       format, epoch, data, figures, SHA-256 of all four
    <run>/latest, best                         links to the newest one, and to the best on validation

A checkpoint is written under a temporary name, flushed to disk and renamed; the links are moved after that.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.averaging import check_sums
from nanoegg_mlx.core.params import Params, check_entries, check_params
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store import exported
from nanoegg_mlx.store.arrays import load_arrays
from nanoegg_mlx.store.durable import HashedFile, point, sha256_of, sync_folder

FORMAT = 2
FILES = ("model.safetensors", "states.safetensors", "config.toml")
_FOLDER = re.compile(r"epoch-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint; the member states are read on demand."""

    path: Path
    config: Config
    epoch: int
    params: Params
    """The model."""
    info: dict[str, Any]
    """checkpoint.json: `tokens`, `seconds`, `validation` and more."""

    def states(self) -> np.ndarray:
        """Every member's hidden state, (N, L, D) int8. Raises InputError if the file has anything else."""
        path, config = self.path / "states.safetensors", self.config
        shape = (config.population, config.n_layer, config.n_embd)
        states = load_arrays(path).get("states")
        if states is None or states.dtype != mx.int8 or states.shape != shape:
            raise InputError(f"{path} does not fit its config.toml; it must have `states`, int8 of shape {shape}.")
        check_entries(states, str(path))
        return np.array(states)

    def moving(self) -> tuple[Params, Params | None]:
        """The parameters that the next epoch moves, and the sums of their average (None without `average`).

        Raises InputError if the file has anything else.
        """
        if not self.config.average:
            return self.params, None
        path = self.path / "states.safetensors"
        arrays = load_arrays(path)
        params, sums = (
            {name.removeprefix(kind): arrays[name] for name in sorted(arrays) if name.startswith(kind)}
            for kind in ("params.", "sums.")
        )
        try:
            check_params(params, self.config)
            check_sums(sums, self.config, self.epoch)
        except InputError as error:
            raise InputError(f"{path} does not fit its config.toml: {error}") from error
        return params, sums


def save(
    run: Path,
    *,
    params: Params,
    average: tuple[Params, Params] | None = None,
    states: np.ndarray | mx.array,
    epoch: int,
    config: Config,
    info: Mapping[str, Any],
) -> Path:
    """Writes the run's newest checkpoint; of the others the newest `config.keep` and the best stay.

    Args:
        run: the run's folder.
        params: the model, leaf name -> int8 array.
        average: with `average`, the parameters that epochs move and the sums of which `params` is the average.
        states: (N, L, D) int8, of all members.
        epoch: epochs done.
        config: the run's.
        info: for checkpoint.json; JSON types. The best checkpoint is the one with the least `validation`.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it cannot be written; the older ones are unchanged.
    """
    folder = run / f"epoch-{epoch:08d}"
    if not folder.exists():
        temporary = run / f".{folder.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            kept = {"states": mx.array(states)}
            for kind, tree in zip(("params", "sums"), average or (), strict=False):
                kept |= {f"{kind}.{name}": value for name, value in tree.items()}
            _write(temporary, params, kept, epoch, config, info)
            os.rename(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        # The checkpoint is durable before a link points at it, and both are before an older one is deleted.
        sync_folder(run)
    point(run / "latest", folder.name)
    best = _best(run)
    if best is not None:
        point(run / "best", best.name)
    for old in folders(run)[: -config.keep]:
        if old != best:
            remove(old)
    return folder


def load(path: str | Path, warn: Callable[[str], object] = lambda text: print(text, file=sys.stderr)) -> Checkpoint:
    """Opens a checkpoint, or the newest whole one of a run's folder.

    Args:
        path: of the checkpoint's folder, of a link to it, or of the run's folder.
        warn: called with a sentence for each damaged checkpoint of a run that is skipped.

    Raises:
        InputError: no checkpoint, or it (of a run: every one) is damaged.

    A folder that `nanoegg export --hf-folder` wrote is taken for a checkpoint too; it has no states.
    """
    path = _pointed(Path(path))
    if (path / exported.CONFIG).is_file() and not (path / "checkpoint.json").exists():
        return Checkpoint(path, *exported.load(path))
    if not path.is_dir():
        raise InputError(f"The folder {path} does not exist; it must be a checkpoint's or a run's.")
    if is_checkpoint(path):
        return open_whole(path)
    candidates = folders(path)[::-1]
    if not candidates:
        raise InputError(f"The folder {path} has no checkpoint; it must have a folder epoch-... with its files.")
    for number, folder in enumerate(candidates, 1):
        try:
            return open_whole(folder)
        except InputError as error:
            if number == len(candidates):
                raise
            warn(f"{error} Using the one before it, {candidates[number].name}.")
    raise AssertionError("the loop returns or raises")


def is_checkpoint(path: Path) -> bool:
    """Whether the folder, or the link to one, is a checkpoint's: by its name or its files."""
    return bool(_FOLDER.fullmatch(path.resolve().name)) or any((path / name).exists() for name in FILES[:2])


def run_of(path: Path) -> Path:
    """The run that a path names: a run's folder, or one of its checkpoints or links to them."""
    pointed = _pointed(path)
    if not is_checkpoint(pointed):
        return path
    run = pointed.resolve().parent
    return pointed.parent if pointed.parent.resolve() == run else run


def outside_checkpoints(path: Path) -> Path:
    """Returns `path`; raises InputError if it is inside a checkpoint, which nothing may be added to."""
    for folder in [path, *path.absolute().parents]:
        if (folder / "checkpoint.json").exists():
            raise InputError(f"{path} is inside the checkpoint {folder}; it must be outside of checkpoints.")
    return path


def named(run: Path) -> dict[str, Path]:
    """The checkpoints that `latest` and `best` stand for, by content: a copy of a run may lack the links."""
    stored, best = folders(run), _best(run)
    return {"latest": stored[-1], **({"best": best} if best else {})} if stored else {}


def _pointed(path: Path) -> Path:
    """The checkpoint that `path` stands for if it is a missing `latest` or `best`, or a text file in place of one."""
    if path.name not in ("latest", "best") or path.is_dir() or not path.parent.is_dir():
        return path
    return named(path.parent).get(path.name, path)


def open_whole(path: Path) -> Checkpoint:
    """Opens one checkpoint.

    Raises:
        InputError: a file is missing, truncated or changed, the format is unknown, or the parameters have other
            shapes than the config's.
    """
    info = _read_about(path)
    for name in FILES:
        try:
            whole = sha256_of(path / name) == info["files"][name]
        except OSError as error:
            raise InputError(f"The checkpoint {path} is damaged: {name} is missing or unreadable.") from error
        if not whole:
            raise InputError(f"The checkpoint {path} is damaged: {name} has changed (its SHA-256 differs).")
    config = Config.from_toml(path / "config.toml")
    params = load_arrays(path / "model.safetensors")
    try:
        check_params(params, config)
    except InputError as error:
        raise InputError(f"The checkpoint {path} does not fit its config.toml: {error}") from error
    return Checkpoint(path, config, info["epoch"], {name: params[name] for name in sorted(params)}, info)


def folders(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [path for path in run.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=epoch_of)


def describe(run: Path) -> list[tuple[Path, dict[str, Any] | None]]:
    """The run's checkpoints, oldest first, each with its checkpoint.json; None if that is damaged."""
    described: list[tuple[Path, dict[str, Any] | None]] = []
    for folder in folders(run):
        try:
            described.append((folder, _read_about(folder)))
        except InputError:
            described.append((folder, None))
    return described


def epoch_of(folder: Path) -> int:
    """The epochs done, from a checkpoint's name."""
    return int(folder.name.removeprefix("epoch-"))


def remove(folder: Path) -> None:
    """Deletes a checkpoint; it is renamed first, so that a partly deleted one is never found."""
    hidden = folder.with_name(f".{folder.name}.old")
    os.rename(folder, hidden)
    shutil.rmtree(hidden)


def remove_leftovers(run: Path) -> None:
    """Deletes partly written and partly deleted files of a killed process. The caller must hold the run's lock."""
    for path in run.iterdir():
        if path.name.startswith(".") and path.suffix in (".tmp", ".old"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _write(
    folder: Path, params: Params, kept: dict[str, mx.array], epoch: int, config: Config, info: Mapping[str, Any]
) -> None:
    """Writes all files; `kept` is the content of states.safetensors."""
    hashes = {}
    for name in FILES:
        with HashedFile(folder / name) as file:
            if name == "model.safetensors":
                mx.save_safetensors(file, params)
            elif name == "states.safetensors":
                mx.save_safetensors(file, kept)
            else:
                file.write(config.to_toml().encode())
            hashes[name] = file.finish()
    about = {"format": FORMAT, "epoch": epoch, **info, "files": hashes}
    with HashedFile(folder / "checkpoint.json") as file:
        file.write(json.dumps({**about, "sha256": _seal(about)}, indent=2).encode())
        file.finish()
    sync_folder(folder)


def _seal(about: Mapping[str, Any]) -> str:
    """SHA-256 of the content of checkpoint.json without the seal itself."""
    content = {name: value for name, value in about.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_about(folder: Path) -> dict[str, Any]:
    """A checkpoint's checkpoint.json. Raises InputError if it is missing, damaged or of another format."""
    path = folder / "checkpoint.json"
    try:
        about = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"The checkpoint {folder} is damaged: {path.name} is missing or unreadable.") from error
    except (ValueError, RecursionError):
        about = None
    if isinstance(about, dict) and type(about.get("format")) is int and about["format"] != FORMAT:
        raise InputError(f"The format of the checkpoint {folder} is {about['format']}; it must be {FORMAT}.")
    if not _is_about(about):
        raise InputError(f"The checkpoint {folder} is damaged: {path.name} has changed.")
    return about


def _is_about(about: Any) -> bool:
    """Whether it is the content of a checkpoint.json, sealed, whose figures have their types."""
    if not isinstance(about, dict) or about.get("sha256") != _seal(about) or not isinstance(about.get("files"), dict):
        return False
    counts = [about.get("epoch"), about.get("tokens", 0)]
    numbers = [about.get("seconds", 0.0)]
    numbers += [figure for name in ("validation", "validation_exact") if (figure := about.get(name)) is not None]
    return (
        all(type(count) is int and 0 <= count < 1 << 63 for count in counts)
        and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        and all(isinstance(about["files"].get(name), str) for name in FILES)
    )


def _best(run: Path) -> Path | None:
    """The checkpoint with the lowest validation figure, the newest on a tie; None if no checkpoint has a figure."""
    figures = [
        (about["validation"], -epoch_of(folder), folder)
        for folder, about in describe(run)
        if about and about.get("validation") is not None  # Opening a damaged one reports the damage.
    ]
    return min(figures)[2] if figures else None
