"""A tiny SWEEP.toml for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from tests.traces import ENGINES

BASE = {
    "model": {"n_layer": 1, "n_embd": 8},
    "evolution": {"population": 16},
    "data": {"tokens_per_update": 6, "train": "train.npy", "valid": "valid.npy"},
    "run": {"validation_batch_size": 8, "engine": ENGINES[-1], "threads": 1},
}
EPOCH = 16 * 6
"""Tokens."""
RANGES = {"alpha": {"low": 0.2, "high": 4.0}, "sigma_shift": {"choices": [2, 4]}}


def write_sweep(path: str = "s.toml", **changes: Any) -> str:
    """Writes a sweep of 12 epochs and 4 validations a trial, in a folder with train.npy and valid.npy."""
    document = {"base": BASE, "trials": 2, "validations": 4, "budget": {"tokens": 12 * EPOCH}, "ranges": RANGES}
    document |= changes
    Path(path).write_text(tomli_w.dumps({name: value for name, value in document.items() if value is not None}))
    return path
