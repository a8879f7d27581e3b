"""The recorded traces of the reference and of options beside it, and their text."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nanoegg_mlx import Config
from nanoegg_mlx.engines import native_problem

GOLDEN = Path(__file__).parent / "golden"
ENGINES = ["mlx"] if native_problem() else ["mlx", "cpu"]
NAMES = ["small", "default", "limited", "odd", "rank3", "reuse0", "reuse3", "signs"]
NUDGED_NAMES = ["act_small", "act_own_token", "act_perturbed_head", "act_deep"]


@cache
def pseudo_text(size: int, seed: int) -> np.ndarray:
    """The deterministic text of the traces: (size,) uint8, from a 64-bit LCG."""
    text = bytearray(size)
    state, previous = seed, 97
    for i in range(size):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        r = state >> 33
        if i % 4093 == 0:
            text[i] = 0
        elif r % 6 == 0:
            text[i] = 32
        else:
            text[i] = previous = 97 + (previous * 7 + r % 5) % 26
    return np.frombuffer(bytes(text), np.uint8)


class Trace:
    """One recorded run: `meta` as recorded, `arrays` by name, and its config."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as archive:
            self.arrays: dict[str, np.ndarray] = {key: archive[key] for key in archive.files}
        self.meta: dict[str, Any] = json.loads(str(self.arrays.pop("meta")))
        self.config = Config(**self.meta["config"])
        self.epochs: int = self.meta["epochs"]

    @property
    def train_tokens(self) -> np.ndarray:
        return pseudo_text(self.meta["train_tokens"], 1)

    @property
    def valid_tokens(self) -> np.ndarray:
        return pseudo_text(self.meta["valid_tokens"], 2)


def sha256(*arrays: Any) -> str:
    """SHA-256 of the bytes of arrays, one after the other, in C order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(np.array(array)).tobytes())
    return digest.hexdigest()
