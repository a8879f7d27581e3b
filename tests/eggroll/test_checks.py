"""Errors for bad arguments."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

from nanoegg_mlx import InputError
from nanoegg_mlx.eggroll import EggRoll


@pytest.mark.parametrize(
    "changes,problem",
    [
        ({"population": 5}, "population is 5; it must be even, for antithetic pairs."),
        ({"population": 0}, "population is 0; it must be at least 1."),
        ({"rank": 0}, "rank is 0; it must be at least 1."),
        ({"sigma": 0.0}, "sigma is 0.0; it must be a positive number."),
        ({"sigma": -1.0}, "sigma is -1.0; it must be a positive number."),
        ({"sigma": math.nan}, "sigma is nan; it must be a positive number."),
        (
            {"fitness_shaping": "rank"},
            "fitness_shaping is 'rank'; it must be one of none, centered-rank, zscore, sign.",
        ),
        ({"noise": "sparse"}, "noise is 'sparse'; it must be one of lowrank, full."),
        ({"baseline": "median"}, "baseline is 'median'; it must be 'none', 'mean' or a number."),
        ({"baseline": math.inf}, "baseline is inf; it must be 'none', 'mean' or a number."),
        ({"learning_rate": None}, "learning_rate and optimizer are both None; exactly one must be given."),
        (
            {"optimizer": optim.Adam(0.1)},
            "learning_rate and optimizer are both given; exactly one must be given.",
        ),
        ({"seed": -1}, "seed is -1; it must be in [0, 2^64)."),
        ({"chunk": 0}, "chunk is 0; it must be at least 1."),
        ({"chunk": 3}, "chunk is 3; it must be even, for antithetic pairs."),
        ({"model": {}}, "The model has no trainable parameters; it must have at least one."),
        (
            {"model": {"ids": mx.array([1, 2])}},
            "Parameter ids is of type int32; it must be an array of floats (or frozen, or left out).",
        ),
    ],
)
def test_bad_arguments(changes: dict[str, Any], problem: str) -> None:
    arguments = {"model": {"w": mx.zeros((2, 2))}, "population": 4, "sigma": 0.1, "learning_rate": 0.1} | changes
    with pytest.raises(InputError) as caught:
        EggRoll(**arguments)
    assert str(caught.value) == problem and isinstance(caught.value, ValueError)


def test_one_array_by_two_names() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match=r"^Parameters layers\.0\.weight and layers\.1\.weight are one array"):
        EggRoll(nn.Sequential(layer, layer), 4, 0.1, 0.1)


def test_bad_fitness_and_inputs() -> None:
    eggroll = EggRoll({"w": mx.zeros((2, 2))}, 4, 0.1, 0.1)
    for fitness in ([1.0, 2.0, 3.0], mx.zeros((4, 2)), 3.0):
        with pytest.raises(
            ValueError, match=r"^The fitness has shape .*; it must have one number for each of 4 members\.$"
        ):
            eggroll.update(fitness)
    with pytest.raises(ValueError, match=r"shape \(4, 3\)"):
        eggroll.step(lambda p, x: x + p["w"][0, 0], mx.zeros(3))
    with pytest.raises(
        ValueError, match=r"^An input with in_axes 0 has shape \(3, 2, 2\); it must have a leading axis of 4 members\.$"
    ):
        eggroll.evaluate(lambda p, x: p["w"] + x, mx.zeros((3, 2, 2)), in_axes=0)
    for axes in (1, (0, 0)):
        with pytest.raises(ValueError, match=r"^in_axes is .*; it must be None or 0, or a tuple of 1 of them"):
            eggroll.evaluate(lambda p, x: p["w"] + x, mx.zeros((4, 2, 2)), in_axes=axes)
    with pytest.raises(ValueError, match=r"^The member is 4; it must be from 0 to 3\.$"):
        eggroll.member(4)
    assert eggroll.steps == 0 and mx.array_equal(eggroll.model["w"], mx.zeros((2, 2)))
