"""Writes a checkpoint's model for use elsewhere: all files are made first, and then written, each as a new one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure import export_c, export_hub
from nanoegg_mlx.store.checkpoint import Checkpoint, outside_checkpoints
from nanoegg_mlx.store.durable import create_file, create_folder


@dataclass(frozen=True)
class Targets:
    """Names of the files and the folder to write; None: not this one."""

    c: Path | None = None
    safetensors: Path | None = None
    npz: Path | None = None
    hf_folder: Path | None = None

    def new_paths(self) -> list[Path]:
        """What an export creates: a model's card lies beside it."""
        paths = [self.c, self.safetensors, self.npz, self.hf_folder]
        cards = [card_of(path) for path in (self.safetensors, self.npz) if path]
        return [path for path in paths if path] + cards


def card_of(path: Path) -> Path:
    """The card's name beside a model file: model.npz.md beside model.npz."""
    return path.with_name(path.name + ".md")


def export(opened: Checkpoint, targets: Targets, licence: str = export_hub.UNKNOWN_LICENCE) -> dict[Path, int]:
    """Writes the targets.

    Args:
        opened: a trained checkpoint.
        targets: at least one.
        licence: the hub's identifier of the weights' licence, for the cards.

    Returns:
        Each file written, with its size in bytes.

    Raises:
        InputError: the checkpoint is untrained or not a model of texts, or a target is missing, exists, or has no
            folder; nothing is written.
        OSError: a file cannot be written; those before it are whole.
    """
    export_hub.check_licence(licence)
    _check_new(targets.new_paths())
    if opened.epoch == 0:
        raise InputError(f"The checkpoint {opened.path} is untrained, at epoch 0; it must be at epoch 1 or later.")
    files: dict[Path, bytes] = {}
    if targets.c:
        about = f"{opened.config.name}, epoch {opened.epoch}: a language model of nanoegg-mlx"
        files[targets.c] = export_c.c_source(opened.params, opened.config, about).encode()
    for path, make in ((targets.safetensors, export_hub.safetensors), (targets.npz, export_hub.npz)):
        if path:
            files[path] = make(opened, licence)
            files[card_of(path)] = export_hub.card(opened, licence).encode()
    folder = export_hub.hub_folder(opened, licence) if targets.hf_folder else {}
    for path, content in files.items():
        create_file(path, content)
    if targets.hf_folder:
        create_folder(targets.hf_folder, folder)
        files |= {targets.hf_folder / name: content for name, content in folder.items()}
    return {path: len(content) for path, content in files.items()}


def _check_new(paths: list[Path]) -> None:
    if not paths:
        raise InputError("The target is missing; it must be one or more of --c, --safetensors, --npz and --hf-folder.")
    for number, path in enumerate(paths):
        outside_checkpoints(path)
        if os.path.lexists(path):
            raise InputError(f"{path} exists; a target of an export must be a new one.")
        if not path.parent.is_dir():
            raise InputError(f"The folder {path.parent} does not exist; a target must be in an existing folder.")
        if path.absolute() in [other.absolute() for other in paths[:number]]:
            raise InputError(f"{path} is the name of two targets; each must have its own.")
