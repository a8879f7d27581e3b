"""Noise: the counters, its moments, antithetic pairs, the layout of its factors."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

from nanoegg_mlx.eggroll import EggRoll, LowRank
from tests.eggroll.models import TOKENS, Conv, Net, same


def test_noise_is_a_function_of_seed_step_draw_and_leaf() -> None:
    model = Net()
    eggroll = EggRoll(model, 12, 0.1, 0.1, rank=2, seed=3)
    noise = eggroll.noise()
    assert noise["layers.0.weight"].A.shape == (6, 2, 8) and noise["layers.0.weight"].B.shape == (6, 2, 6)
    assert noise["norm.bias"].shape == (6, 6) and noise["bare.scalar"].shape == (6,)
    # Any part alone, from another object or population, has the same bits.
    other = EggRoll(model, 40, 0.7, optimizer=optim.Adam(1e-3), rank=2, seed=3)
    for name, E in other.noise(range(2, 5)).items():
        whole = noise[name]
        if isinstance(E, LowRank):
            assert mx.array_equal(E.A, whole.A[2:5]) and mx.array_equal(E.B, whole.B[2:5])
        else:
            assert mx.array_equal(E, whole[2:5])
    eggroll.step(lambda m, t: mx.mean(m(t)), TOKENS)
    assert same(eggroll.noise(step=0), noise)
    draws = [noise, eggroll.noise(), EggRoll(model, 12, 0.1, 0.1, rank=2, seed=4).noise()]
    rows = [
        draw[name].A[k, 0, :5].tolist()
        for draw in draws
        for name in ("layers.0.weight", "embedding.weight")
        for k in range(6)
    ]
    assert len({tuple(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("kind", ["lowrank", "full"])
def test_noise_has_mean_zero_and_unit_variance(kind: Any) -> None:
    eggroll = EggRoll({"W": mx.zeros((3, 4)), "b": mx.zeros(5)}, 40_000, 1.0, 1.0, rank=2, noise=kind, antithetic=False)
    deltas = eggroll.perturbations(range(40_000))
    W = deltas["W"].A.swapaxes(1, 2) @ deltas["W"].B if isinstance(deltas["W"], LowRank) else deltas["W"]
    for E in (W, deltas["b"]):
        assert mx.max(mx.abs(mx.mean(E, axis=0))).item() < 5 / math.sqrt(40_000)
        assert mx.max(mx.abs(mx.var(E, axis=0) - 1)).item() < 5 * math.sqrt(5 / 40_000)


def test_antithetic_members_are_mirror_images() -> None:
    mu = {"W": mx.zeros((3, 4)), "b": mx.zeros(5)}
    eggroll = EggRoll(mu, 6, 0.1, 0.1, rank=2)
    members = [eggroll.member(index) for index in range(6)]
    for plus, minus in zip(members[0::2], members[1::2], strict=True):
        assert same(plus, tree_map(lambda x: -x, minus))
    assert not same(members[0], members[2])
    # A linear fitness and its constant: pairs cancel the constant exactly.
    c = mx.random.normal((3, 4), key=mx.random.key(1))
    moved = []
    for constant in (0.0, 4096.0):
        eggroll = EggRoll(mu, 6, 0.25, 0.5, baseline="none")
        values = mx.array([round(256 * mx.sum(c * eggroll.member(i)["W"]).item()) / 256 for i in range(6)])
        eggroll.update(values + constant)
        moved.append(eggroll.model)
    assert same(*moved)


def test_convolution_noise_is_low_rank_over_its_outputs() -> None:
    eggroll = EggRoll(Conv(), 2, 0.1, 0.1, rank=1)
    E = eggroll.noise()["conv.weight"]
    assert E.A.shape == (1, 1, 2) and E.B.shape == (1, 1, 9)
