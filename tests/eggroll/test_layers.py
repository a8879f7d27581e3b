"""The batched forward pass against members with separate parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from nanoegg_mlx.eggroll import EggRoll, perturbed_product
from tests.eggroll.models import TOKENS, Attention, Conv, Net, call, close, copy_of, materialised, same


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
    # In chunks of members: the same noise; the order of sums may differ.
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
    W, A, B = mx.random.normal((3, 2, 4)), mx.random.normal((3, 1, 2)), mx.random.normal((3, 1, 4))
    want = mx.stack([x @ (W[i] + A[i].T @ B[i]).T for i in range(3)])
    assert close(mx.vmap(perturbed_product, in_axes=(None, 0, 0, 0))(x, W, A, B), want)
    xs = mx.stack([x, 2 * x, 3 * x])
    want = mx.stack([xs[i] @ (W[0] + A[0].T @ B[i]).T for i in range(3)])
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
