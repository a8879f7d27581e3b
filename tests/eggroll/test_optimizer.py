"""The update, its reports, and fitness functions of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from nanoegg_mlx.eggroll import EggRoll, shape_fitness
from tests.eggroll.models import TOKENS, Net, call, close, copy_of, same


def test_python_that_cannot_be_vmapped_gives_the_same_numbers() -> None:
    eggroll = EggRoll(Net(), 6, 0.3, 0.1, rank=2)
    y = mx.array([[0, 1, 2], [3, 4, 0]])

    def objective(model: nn.Module, tokens: mx.array) -> mx.array:
        return -mx.sum(nn.losses.cross_entropy(model(tokens), y))

    def stubborn(model: nn.Module, tokens: mx.array) -> float:
        return objective(model, tokens).item()

    def judge(logits: mx.array) -> float:
        best = np.array(logits).argmax(axis=-1)
        return int((best == np.array(y)).sum()) / y.size

    assert close(eggroll.evaluate(stubborn, TOKENS), eggroll.evaluate(objective, TOKENS))
    logits = eggroll.evaluate(call, TOKENS)
    assert eggroll.score(judge, logits).tolist() == pytest.approx([judge(logits[i]) for i in range(6)])
    report = eggroll.step(call, TOKENS, fitness=judge)
    assert not report.vectorised
    assert report.fitness_mean == pytest.approx(np.mean([judge(logits[i]) for i in range(6)]))
    assert eggroll.step(call, TOKENS, fitness=lambda logits: mx.mean(mx.argmax(logits, axis=-1) == y)).vectorised


@pytest.mark.parametrize("kind,rank", [("lowrank", 1), ("lowrank", 3), ("full", 1)])
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("chunk", [None, 4])
def test_update_is_the_sum_over_members(kind: Any, rank: int, antithetic: bool, chunk: int | None) -> None:
    model = Net()
    mu = copy_of(model)
    eggroll = EggRoll(model, 10, 0.2, 0.5, rank, noise=kind, antithetic=antithetic, baseline="none", chunk=chunk)
    fitness = np.random.default_rng(0).normal(size=10)
    members = [dict(tree_flatten(eggroll.member(index))) for index in range(10)]
    report = eggroll.update(fitness)
    change = {}
    for name, leaf in tree_flatten(mu):
        # mu + lr / (N sigma) sum f_i E_i in float64, E_i from the members: (mu + sigma E_i - mu) / sigma.
        E = np.stack([np.array(member[name], np.float64) - np.array(leaf, np.float64) for member in members]) / 0.2
        change[name] = 0.5 / (10 * 0.2) * np.tensordot(fitness, E, axes=1)
        got = np.array(eggroll.parameters()[name], np.float64) - np.array(leaf, np.float64)
        assert np.abs(got - change[name]).max() < 5e-6
    assert report.update_norm == pytest.approx(math.sqrt(sum((c**2).sum() for c in change.values())), rel=1e-5)


def test_rank_of_the_update_is_at_most_that_of_its_noise() -> None:
    for population, rank, want in ((4, 1, 2), (4, 3, 6), (20, 1, 8)):
        eggroll = EggRoll({"W": mx.zeros((8, 9))}, population, 0.1, 1.0, rank)
        eggroll.update(np.arange(population) ** 2)
        assert np.linalg.matrix_rank(np.array(eggroll.model["W"]), tol=1e-3) == want


def test_members_that_are_not_finite_are_dropped_with_their_twins() -> None:
    tree = {"W": mx.ones((3, 4)), "b": mx.ones(3)}
    fitness = np.array([1.0, 2.0, math.nan, 500.0, 3.0, -1.0, -math.inf, math.inf])
    eggroll = EggRoll(tree, 8, 0.1, 0.2)
    E = {name: mx.stack([eggroll.member(i)[name] - tree[name] for i in range(8)]) / 0.1 for name in tree}
    report = eggroll.update(fitness)
    assert (report.non_finite, report.dropped, report.evaluations) == (3, 4, 8)
    assert (report.fitness_mean, report.fitness_max) == (505 / 5, 500.0)
    for name, mu in tree.items():
        want = mu + 0.2 / (4 * 0.1) * sum(fitness[i] * E[name][i] for i in (0, 1, 4, 5))
        assert close(eggroll.model[name], want)

    eggroll = EggRoll(tree, 8, 0.1, 0.2, antithetic=False)
    report = eggroll.update(fitness)
    assert (report.non_finite, report.dropped) == (3, 3)
    assert all(mx.all(mx.isfinite(leaf)) for leaf in eggroll.model.values())


@pytest.mark.parametrize("shaping", ["none", "centered-rank", "zscore", "sign"])
def test_a_population_lost_altogether_moves_nothing(shaping: Any) -> None:
    model = Net()
    eggroll = EggRoll(model, 4, 0.1, optimizer=optim.Adam(0.1), fitness_shaping=shaping)
    eggroll.update([1.0, 2.0, 0.5, 3.0])
    before = copy_of(model)
    report = eggroll.update(mx.array([math.nan] * 4))
    assert same(model.parameters(), before)
    assert (report.non_finite, report.dropped, report.update_norm, eggroll.steps) == (4, 4, 0.0, 2)
    assert math.isnan(report.fitness_mean) and math.isnan(report.cosine)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_a_sum_beyond_the_parameters_type_moves_nothing(dtype: mx.Dtype) -> None:
    tree = {"W": mx.ones((3, 4), dtype)}
    eggroll = EggRoll(tree, 4, 1e-3, 0.1)
    report = eggroll.update([3e38, -3e38, 1e38, 1.0])
    assert (report.non_finite, report.dropped, report.update_norm) == (0, 4, 0.0)
    assert mx.array_equal(eggroll.model["W"], tree["W"])
    assert eggroll.update([1.0, 2.0, 3.0, 5.0]).dropped == 0


def test_an_overflowing_member_does_not_spread() -> None:
    eggroll = EggRoll({"w": mx.array([1.0, 0.0])}, 32, 1.0, 0.01, seed=1)
    for _ in range(5):
        report = eggroll.step(lambda p: mx.log(p["w"][0]) - mx.sum((p["w"] - 1) ** 2))
        assert 0 < report.dropped < 32 and report.non_finite >= report.dropped // 2
        assert mx.all(mx.isfinite(eggroll.model["w"]))


@pytest.mark.parametrize(
    "make",
    [lambda: optim.Adam(0.01), lambda: optim.SGD(0.1, momentum=0.9), lambda: optim.AdamW(optim.cosine_decay(0.1, 10))],
)
@pytest.mark.parametrize("tree", [True, False])
def test_optimizers_get_the_estimate_as_a_gradient(make: Callable[[], optim.Optimizer], tree: bool) -> None:
    start = Net()
    model: Any = Net()
    model.update(copy_of(start))
    eggroll = EggRoll(copy_of(start) if tree else model, 6, 0.1, optimizer=make(), rank=2)
    reference, optimizer = copy_of(start), make()
    for step in range(3):
        fitness = np.random.default_rng(step).normal(size=6)
        estimate = eggroll.estimate(shape_fitness(fitness, antithetic=True)[0])
        reference = optimizer.apply_gradients(tree_unflatten([(n, -g) for n, g in estimate.items()]), reference)
        eggroll.update(fitness)
        assert same(eggroll.model if tree else model.parameters(), reference)


def test_half_precision_parameters_stay_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model.set_dtype(mx.bfloat16)
    eggroll = EggRoll(model, 4, 0.5, 0.5)
    report = eggroll.step(lambda m, x: mx.mean(m(x)), mx.ones((2, 4), mx.bfloat16))
    assert report.vectorised and report.update_norm > 0
    assert {leaf.dtype for leaf in eggroll.parameters().values()} == {mx.bfloat16}


def test_it_learns_and_repeats_itself() -> None:
    x = mx.random.normal((20, 4), key=mx.random.key(0))
    y = x @ mx.random.normal((4, 3), key=mx.random.key(1))
    ends = []
    for _ in range(2):
        model = nn.Linear(4, 3)
        model.update({"weight": mx.zeros((3, 4)), "bias": mx.zeros(3)})
        eggroll = EggRoll(model, 64, 0.05, 0.1, seed=7)
        reports = [eggroll.step(lambda m, x, y: -mx.mean((m(x) - y) ** 2), x, y) for _ in range(60)]
        assert reports[-1].fitness_mean > 0.02 * reports[0].fitness_mean
        ends.append(copy_of(model))
    assert same(*ends)


def test_reports() -> None:
    model = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 7))
    eggroll = EggRoll(model, 4, 0.1, 0.1, rank=2)
    fitness = [[1.0, 0.0, 4.0, -2.0], [0.5, 0.25, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]]
    states = [copy_of(model)]
    reports = []
    for values in fitness:
        reports.append(eggroll.update(values))
        states.append(copy_of(model))

    def flat(tree: Any) -> np.ndarray:
        return np.concatenate([np.array(leaf, np.float64).ravel() for _, leaf in tree_flatten(tree)])

    changes = [flat(after) - flat(before) for before, after in pairwise(states)]
    assert [report.step for report in reports] == [0, 1, 2] and eggroll.steps == 3
    assert (reports[0].fitness_mean, reports[0].fitness_max, reports[0].fitness_std) == (0.75, 4.0, np.std(fitness[0]))
    for report, change in zip(reports, changes, strict=True):
        assert report.update_norm == pytest.approx(np.linalg.norm(change), rel=1e-4)
        assert report.evaluations == 4 and report.evaluations_per_second > 0
        assert (report.floats_per_member, report.floats_per_member_full) == (2 * (11 + 5 + 5 + 7) + 7, 55 + 35 + 7)
    assert math.isnan(reports[0].cosine)
    cosine = changes[0] @ changes[1] / np.linalg.norm(changes[0]) / np.linalg.norm(changes[1])
    assert reports[1].cosine == pytest.approx(cosine, abs=1e-4)
    full = EggRoll(nn.Linear(3, 2), 2, 0.1, 0.1, noise="full").update([1.0, 0.0])
    assert full.floats_per_member == full.floats_per_member_full == 8
    # Equal fitness has no direction: no move, no cosine.
    assert reports[2].update_norm == 0 and math.isnan(reports[2].cosine)
