"""Naive twins of the caches, and helpers for whole runs."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def naive_tokens() -> Callable[[list[str]], np.ndarray]:
    """Documents to tokens by the plain loop, one Python list a document."""

    def tokens(documents: list[str]) -> np.ndarray:
        arrays = [np.array([0, *text.encode()], dtype=np.uint8) for text in documents]
        return np.concatenate([np.empty(0, np.uint8), *arrays])

    return tokens


@pytest.fixture(scope="session")
def naive_cache(naive_tokens: Callable) -> Callable[[list[str]], bytes]:
    """Documents to the bytes of np.save for their tokens."""

    def cache(documents: list[str]) -> bytes:
        file = io.BytesIO()
        np.save(file, naive_tokens(documents))
        return file.getvalue()

    return cache


@pytest.fixture
def read_set() -> Callable[[Path, str], dict[str, bytes]]:
    """The .npy files of a set, by split, as its manifest lists them."""

    def read(folder: Path, name: str) -> dict[str, bytes]:
        manifest = json.loads((folder / f"{name}_manifest.json").read_text())
        return {s: (folder / e["file"]).read_bytes() for s, e in manifest["splits"].items()}

    return read


@pytest.fixture
def start() -> Callable[..., subprocess.Popen]:
    """Starts `python` with the given arguments, the project on its path, output piped."""

    def popen(*args: object, **options: object) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, *map(str, args)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return popen
