"""Fitness shaping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanoegg_mlx.eggroll import centered_ranks, shape_fitness


def test_centered_ranks() -> None:
    assert centered_ranks(np.array([3.0, -1.0, 10.0])).tolist() == [0.0, -0.5, 0.5]
    assert centered_ranks(np.array([1.0, 2.0, 2.0, 2.0, 9.0])).tolist() == [-0.5, 0.0, 0.0, 0.0, 0.5]
    assert centered_ranks(np.array([4.0, 4.0])).tolist() == [0.0, 0.0]
    assert centered_ranks(np.array([4.0])).tolist() == [0.0]


def test_shaping() -> None:
    f = np.array([1.0, 3.0, 8.0, 8.0])

    def weights(**settings: Any) -> list[float]:
        return shape_fitness(f, **settings)[0].tolist()

    assert weights(baseline="none") == [1, 3, 8, 8]
    assert weights() == [-4, -2, 3, 3]
    assert weights(baseline=3) == [-2, 0, 5, 5]
    assert weights(shaping="zscore") == pytest.approx([x / f.std() for x in (-4, -2, 3, 3)])
    assert weights(shaping="sign") == [-1, -1, 1, 1]
    assert weights(shaping="sign", baseline=3.0) == [-1, 0, 1, 1]
    assert weights(shaping="sign", antithetic=True) == [-1, 1, 0, 0]
    assert weights(shaping="centered-rank") == pytest.approx([-1 / 2, -1 / 6, 1 / 3, 1 / 3])
    assert shape_fitness(np.full(4, 7.0), "zscore")[0].tolist() == [0, 0, 0, 0]
