"""Random and extreme inputs for the native kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config
from tests import oracle

native: Any = pytest.importorskip("nanoegg_mlx.engines._native", reason="the native extension was not built")
ISAS: list[str] = native.info()["available"]
TWINS = [*ISAS, "naive"]
"""Every instruction set of this machine, and the scalar twin."""


def numbers(rng: np.random.Generator, *shape: int, bound: int = 127) -> np.ndarray:
    """Int8 of magnitude up to `bound`. Most rows are random; the others are of a kind that breaks arithmetic: maximal
    values of one sign (which saturate 16 bits where an instruction adds two products there), of both, tiny, or zero."""
    values = rng.integers(-bound, bound + 1, shape)
    rows = values.reshape(-1, shape[-1])
    for row in rows:
        way = rng.integers(12)
        if way < 2:
            row[:] = bound if way else -bound
        elif way < 4:
            row[:] = np.where(rng.integers(0, 2, len(row)) if way == 2 else np.arange(len(row)) % 2, bound, -bound)
        elif way < 6:
            row[:] = rng.integers(-2, 3, len(row)) if way == 4 else 0
    return values.astype(np.int8)


def random_params(rng: np.random.Generator, config: Config) -> dict[str, np.ndarray]:
    """Parameters that no training would reach."""
    return {
        name: numbers(rng, *([config.n_layer] if name.startswith("blocks.") else []), *shape)
        for name, _, shape in oracle.leaves(config)
    }
