"""EGGROLL for float models: noise, batched members, updates, reports and errors, held against plain formulas."""

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
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from nanoegg_mlx import InputError
from nanoegg_mlx.eggroll import EggRoll, LowRank, centered_ranks, perturbed_product, shape_fitness

TOKENS = mx.array([[1, 2, 3], [4, 0, 2]])


class Net(nn.Module):
    """Every kind of leaf: embedding (used twice), linear layers in a list, norms, a bare matrix, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.layers = [nn.Linear(6, 8), nn.Linear(8, 6, bias=False)]
        self.norm = nn.LayerNorm(6)
        self.bare = {"matrix": mx.random.normal((6, 6), key=mx.random.key(8)), "scalar": mx.array(0.5)}

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.norm(self.embedding(tokens)) @ self.bare["matrix"]
        x = x + self.bare["scalar"] * self.layers[1](mx.tanh(self.layers[0](x)))
        return self.embedding.as_linear(x)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.out = nn.Linear(8, 3)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(self.conv(x).reshape(len(x), -1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiHeadAttention(4, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.attention(x, x, x)


def same(a: Any, b: Any) -> bool:
    """Whether two trees of arrays are equal to the last bit."""
    a, b = dict(tree_flatten(a)), dict(tree_flatten(b))
    return a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]) for name in a)


def copy_of(model: nn.Module) -> Any:
    return tree_map(lambda x: mx.array(x), model.parameters())


def call(model: nn.Module, *inputs: mx.array) -> Any:
    return model(*inputs)


def materialised(
    eggroll: EggRoll, objective: Callable[..., Any], inputs: Callable[[int], tuple[mx.array, ...]]
) -> mx.array:
    """Each member's output from its own whole parameters, one after the other."""
    before = copy_of(eggroll.model)
    outputs = []
    for index in range(eggroll.population):
        eggroll.model.update(eggroll.member(index))
        outputs.append(objective(eggroll.model, *inputs(index)))
        eggroll.model.update(before)
    return mx.stack(outputs)


def close(a: mx.array, b: mx.array) -> bool:
    """Equal up to float32 sums in another order."""
    return a.shape == b.shape and bool(mx.max(mx.abs(a - b)) <= 2e-5 * max(1.0, mx.max(mx.abs(b)).item()))


# Noise


def test_noise_is_a_function_of_seed_step_draw_and_leaf() -> None:
    model = Net()
    eggroll = EggRoll(model, 12, 0.1, 0.1, rank=2, seed=3)
    noise = eggroll.noise()
    assert noise["layers.0.weight"].A.shape == (6, 8, 2) and noise["layers.0.weight"].B.shape == (6, 6, 2)
    assert noise["norm.bias"].shape == (6, 6) and noise["bare.scalar"].shape == (6,)
    # Any part alone, in another object, of another population: the same bits.
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
        draw[name].A[k, :5, 0].tolist()
        for draw in draws
        for name in ("layers.0.weight", "embedding.weight")
        for k in range(6)
    ]
    assert len({tuple(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("kind", ["lowrank", "full"])
def test_noise_has_mean_zero_and_unit_variance(kind: Any) -> None:
    eggroll = EggRoll({"W": mx.zeros((3, 4)), "b": mx.zeros(5)}, 40_000, 1.0, 1.0, rank=2, noise=kind, antithetic=False)
    deltas = eggroll.perturbations(range(40_000))
    W = deltas["W"].A @ deltas["W"].B.swapaxes(1, 2) if isinstance(deltas["W"], LowRank) else deltas["W"]
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


# The batched forward pass


@pytest.mark.parametrize("kind,rank", [("lowrank", 1), ("lowrank", 2), ("lowrank", 3), ("lowrank", 4), ("full", 1)])
@pytest.mark.parametrize("antithetic", [True, False])
def test_population_at_once_equals_materialised_members(kind: Any, rank: int, antithetic: bool) -> None:
    model = Net()
    before = copy_of(model)
    eggroll = EggRoll(model, 6, 0.3, 0.1, rank=rank, noise=kind, antithetic=antithetic)
    tokens = mx.random.randint(0, 5, (6, 2, 3), key=mx.random.key(0))
    assert close(eggroll.evaluate(call, TOKENS), materialised(eggroll, call, lambda i: (TOKENS,)))
    own = eggroll.evaluate(call, tokens, in_axes=0)
    assert close(own, materialised(eggroll, call, lambda i: (tokens[i],)))
    assert same(model.parameters(), before)
    # In chunks of members: the same noise, and sums that may be of another order.
    chunked = EggRoll(model, 6, 0.3, 0.1, rank=rank, noise=kind, antithetic=antithetic, chunk=4)
    assert close(chunked.evaluate(call, tokens, in_axes=0), own)
    assert eggroll.step(lambda m, t: mx.mean(m(t) ** 2), TOKENS).vectorised


def test_mixed_inputs_trees_and_layers_called_twice() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    eggroll = EggRoll(model, 4, 0.3, 0.1, rank=2)
    shared, own = mx.random.normal((3, 4)), mx.random.normal((4, 3, 4))

    def objective(model: nn.Module, x: mx.array, batch: dict[str, mx.array]) -> dict[str, mx.array]:
        return {"y": model(model(x)) + model(batch["x"]), "x": x}

    outputs = eggroll.evaluate(objective, shared, {"x": own}, in_axes=(None, 0))
    assert mx.array_equal(outputs["x"], mx.broadcast_to(shared, (4, 3, 4)))
    want = materialised(eggroll, lambda *arguments: objective(*arguments)["y"], lambda i: (shared, {"x": own[i]}))
    assert close(outputs["y"], want)


@pytest.mark.parametrize(
    "make,shape", [(Conv, (2, 4, 4, 1)), (Attention, (2, 3, 4)), (lambda: nn.GRU(4, 3), (2, 3, 4))]
)
def test_other_layers(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    x = mx.random.normal(shape)
    eggroll = EggRoll(make(), 4, 0.3, 0.1, rank=2)
    assert close(eggroll.evaluate(call, x), materialised(eggroll, call, lambda i: (x,)))


def test_linear_of_a_subclass_keeps_its_own_forward() -> None:
    class Doubled(nn.Linear):
        def __call__(self, x: mx.array) -> mx.array:
            return x @ (2 * self.weight).T

    x = mx.random.normal((3, 4))
    eggroll = EggRoll(Doubled(4, 2, bias=False), 4, 0.3, 0.1)
    assert close(eggroll.evaluate(call, x), materialised(eggroll, call, lambda i: (x,)))


def test_plain_trees_and_frozen_parameters() -> None:
    tree = {"layers": [{"W": mx.random.normal((3, 4))}, {"W": mx.random.normal((2, 3))}]}
    x = mx.random.normal((5, 4))
    eggroll = EggRoll(tree, 4, 0.2, 0.1)
    outputs = eggroll.evaluate(lambda p, x: x @ p["layers"][0]["W"].T @ p["layers"][1]["W"].T, x)
    member = eggroll.member(3)["layers"]
    assert close(outputs[3], x @ member[0]["W"].T @ member[1]["W"].T)

    model = Net()
    model.layers[0].freeze()
    frozen = copy_of(model)
    eggroll = EggRoll(model, 4, 0.2, 0.1)
    assert "layers.0.weight" not in eggroll.noise() and "layers.1.weight" in eggroll.noise()
    eggroll.step(lambda m, t: mx.mean(m(t) ** 2), TOKENS)
    assert same(model.layers[0].parameters(), frozen["layers"][0])
    assert not same(model.layers[1].parameters(), frozen["layers"][1])


@pytest.mark.parametrize("of_member", [True, False])
def test_no_weight_is_copied(of_member: bool) -> None:
    """A step of 64 members needs less memory beyond the model than one more copy of its weight."""
    model = nn.Linear(1000, 1000, bias=False)
    eggroll = EggRoll(model, 64, 0.1, 0.1)
    x = mx.ones((64, 2, 1000) if of_member else (2, 1000))
    mx.eval(model.parameters(), x)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(eggroll.evaluate(lambda m, x: mx.sum(m(x)), x, in_axes=0 if of_member else None))
    assert mx.get_peak_memory() - before < 4 * model.weight.size


def test_vmap_inside_a_member_and_over_models() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    eggroll = EggRoll(model, 4, 0.3, 0.1, rank=2)
    x = mx.random.normal((5, 4))
    assert close(eggroll.evaluate(lambda m, x: mx.vmap(m)(x), x), eggroll.evaluate(call, x))
    W, A, B = mx.random.normal((3, 2, 4)), mx.random.normal((3, 2, 1)), mx.random.normal((3, 4, 1))
    want = mx.stack([x @ (W[i] + A[i] @ B[i].T).T for i in range(3)])
    assert close(mx.vmap(perturbed_product, in_axes=(None, 0, 0, 0))(x, W, A, B), want)
    xs = mx.stack([x, 2 * x, 3 * x])
    want = mx.stack([xs[i] @ (W[0] + A[0] @ B[i].T).T for i in range(3)])
    assert close(mx.vmap(perturbed_product, in_axes=(0, None, None, 0))(xs, W[0], A[0], B), want)


def test_a_model_is_whole_again_after_an_error() -> None:
    model = Net()
    before, eggroll = copy_of(model), EggRoll(model, 4, 0.1, 0.1)

    def broken(model: nn.Module, tokens: mx.array) -> mx.array:
        model(tokens)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        eggroll.evaluate(broken, TOKENS)
    assert same(model.parameters(), before)
    assert type(model.layers[0]) is nn.Linear and type(model.embedding) is nn.Embedding
    assert not hasattr(model.layers[0], "_factors")


# Fitness


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


# The update


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


def test_convolution_noise_is_low_rank_over_its_outputs() -> None:
    eggroll = EggRoll(Conv(), 2, 0.1, 0.1, rank=1)
    E = eggroll.noise()["conv.weight"]
    assert E.A.shape == (1, 2, 1) and E.B.shape == (1, 9, 1)


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


# Reports


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
    # Equal fitness is no direction: no move, no cosine.
    assert reports[2].update_norm == 0 and math.isnan(reports[2].cosine)


# Bad arguments


@pytest.mark.parametrize(
    "changes,problem",
    [
        ({"population": 5}, "population is 5, but it must be even, for antithetic pairs."),
        ({"population": 0}, "population is 0, but it must be at least 1."),
        ({"rank": 0}, "rank is 0, but it must be at least 1."),
        ({"sigma": 0.0}, "sigma is 0.0, but it must be a positive number."),
        ({"sigma": -1.0}, "sigma is -1.0, but it must be a positive number."),
        ({"sigma": math.nan}, "sigma is nan, but it must be a positive number."),
        (
            {"fitness_shaping": "rank"},
            "fitness_shaping is 'rank', but it must be one of none, centered-rank, zscore, sign.",
        ),
        ({"noise": "sparse"}, "noise is 'sparse', but it must be one of lowrank, full."),
        ({"baseline": "median"}, "baseline is 'median', but it must be 'none', 'mean' or a number."),
        ({"baseline": math.inf}, "baseline is inf, but it must be 'none', 'mean' or a number."),
        ({"learning_rate": None}, "Either learning_rate or optimizer must be given, and not both."),
        ({"optimizer": optim.Adam(0.1)}, "Either learning_rate or optimizer must be given, and not both."),
        ({"seed": -1}, "seed is -1, but it must be in [0, 2^64)."),
        ({"chunk": 0}, "chunk is 0, but it must be at least 1."),
        ({"chunk": 3}, "chunk is 3, but it must be even, for antithetic pairs."),
        ({"model": {}}, "The model has no trainable parameters."),
        (
            {"model": {"ids": mx.array([1, 2])}},
            "Parameter ids is not an array of floats: freeze it or leave it out.",
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
            ValueError, match=r"^The fitness has shape .*, but it must be one number for each of 4 members\.$"
        ):
            eggroll.update(fitness)
    with pytest.raises(ValueError, match=r"shape \(4, 3\)"):
        eggroll.step(lambda p, x: x + p["w"][0, 0], mx.zeros(3))
    with pytest.raises(ValueError, match=r"^An input with in_axes 0 has no leading axis of 4 members\.$"):
        eggroll.evaluate(lambda p, x: p["w"] + x, mx.zeros((3, 2, 2)), in_axes=0)
    for axes in (1, (0, 0)):
        with pytest.raises(ValueError, match=r"^in_axes is .*, but it must be None or 0, or a tuple of 1 of them"):
            eggroll.evaluate(lambda p, x: p["w"] + x, mx.zeros((4, 2, 2)), in_axes=axes)
    with pytest.raises(ValueError, match=r"^Member 4 is not in a population of 4\.$"):
        eggroll.member(4)
    assert eggroll.steps == 0 and mx.array_equal(eggroll.model["w"], mx.zeros((2, 2)))
