"""Models and comparisons that the tests of EGGROLL share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from nanoegg_mlx.eggroll import EggRoll

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
