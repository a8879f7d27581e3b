"""Reads folders that `nanoegg export --hf-folder` wrote, as the hub returns them: config.json and model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, check_params, model_hash
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store.arrays import load_arrays

CONFIG = "config.json"
MODEL = "model.safetensors"
TYPE = "nanoegg"
"""The hub's model_type."""


def load(folder: Path) -> tuple[Config, int, Params, dict[str, Any]]:
    """The model's config, its epochs of training, its parameters, and config.json.

    Raises:
        InputError: the folder is of another program, or a file is missing, damaged or of another model.
    """
    about = _read_about(folder / CONFIG)
    try:
        config = Config(**about["config"])
    except TypeError as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}.") from error
    params = load_arrays(folder / MODEL)
    check_params(params, config)
    if model_hash(params, config).hex() != about["sha256"]:
        raise InputError(f"{folder / MODEL} has changed (the SHA-256 of the model differs from that in {CONFIG}).")
    return config, about["epoch"], {name: params[name] for name in sorted(params)}, about


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is unreadable or damaged; it must be a JSON object.") from error
    if not isinstance(about, dict) or about.get("model_type") != TYPE:
        raise InputError(f"{path} is of another program; its model_type must be {TYPE!r}.")
    types = {"epoch": int, "config": dict, "sha256": str}
    for name, kind in types.items():
        if type(about.get(name)) is not kind or (name == "epoch" and about[name] < 0):
            raise InputError(f"{path} is damaged: its {name} must be as it was written.")
    return about
