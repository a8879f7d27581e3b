"""Runs for tests, started as by `nanoegg train`, and a tiny run with all files of a run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, init_params
from nanoegg_mlx.commands.train import observers
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.ranks.world import World
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.training.launch import BranchedRun, NewRun, ResumedRun, launch
from nanoegg_mlx.training.recorder import Outcome
from tests.traces import ENGINES, pseudo_text


def train(config: Config, world: World | None = None, track: Sequence[str] = ()) -> Outcome | None:
    """Trains a new run."""
    return launch(NewRun(config), world, observers(track))


def resume(folder: Path, changes: Mapping[str, Any], track: Sequence[str] = ()) -> Outcome | None:
    """Resumes a run."""
    return launch(ResumedRun(folder, changes), observe=observers(track))


def branch(source: Path, epoch: int, changes: Mapping[str, Any]) -> Outcome | None:
    """Trains a branch of a run."""
    return launch(BranchedRun(source, epoch, changes), observe=observers(()))


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `folder` the working directory, with a small train.npy and valid.npy in it."""
    monkeypatch.chdir(folder)
    np.save("train.npy", pseudo_text(3000, 1))
    np.save("valid.npy", pseudo_text(400, 2))
    return folder


def tiny_config(folder: Path, **changes: Any) -> Config:
    """Writes caches into `folder` and returns the config of a tiny run on them."""
    if not (folder / "train.npy").exists():
        np.save(folder / "train.npy", pseudo_text(3000, 1))
        np.save(folder / "valid.npy", pseudo_text(900, 2))
    fields = {
        "n_layer": 1, "n_embd": 8, "population": 16, "tokens_per_update": 6, "train": str(folder / "train.npy"),
        "valid": str(folder / "valid.npy"), "checkpoints": str(folder / "runs"), "name": "t", "num_epochs": 12,
        "validate_every": 5, "validation_batch_size": 8, "checkpoint_every": 4, "engine": ENGINES[-1],
    }  # fmt: skip
    return Config(**{**fields, **changes})


def tiny_run(folder: Path, track: tuple[str, ...] = (), **changes: Any) -> Path:
    """Trains it and returns the run's folder."""
    config = tiny_config(folder, **changes)
    train(config, track=track)
    return Path(config.checkpoints) / config.name


def skilled_params(config: Config, text: bytes) -> Params:
    """Parameters that prefer the bytes of a text, which they therefore compress, without training: embeddings are
    positive, and so are the rows of those bytes in the head."""
    params = {name: np.array(value) for name, value in init_params(config).items()}
    params["head"] = np.random.default_rng(1).integers(-8, 9, params["head"].shape).astype(np.int8)
    params["head"][np.unique(np.frombuffer(text, np.uint8))] = 40
    params["emb"] = np.clip(80 + np.abs(params["emb"].astype(int)), 0, 127).astype(np.int8)
    params["blocks.mlp.1.weight"] = np.zeros_like(params["blocks.mlp.1.weight"])
    return {name: mx.array(value) for name, value in params.items()}


def skilled_checkpoint(folder: Path, text: bytes, **changes: Any) -> str:
    """A checkpoint of `skilled_params`, as if they were trained."""
    config = tiny_config(folder, **changes)
    states = np.zeros((config.population, config.n_layer, config.n_embd), np.int8)
    epoch = changes.get("num_epochs", 7)
    return str(
        checkpoint.save(folder, params=skilled_params(config, text), states=states, epoch=epoch, config=config, info={})
    )
