"""Layers of one member: a product with W + A B^T that never forms the sum, and a model that computes with it.

The whole population runs through one call of the user's model under mx.vmap. A vmap rule of our own makes the product
with W one matrix multiplication for all members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from nanoegg_mlx.eggroll.noise import LowRank, Noise, dense
from nanoegg_mlx.eggroll.trees import flat


def perturbed_product(x: mx.array, W: mx.array, A: mx.array, B: mx.array) -> mx.array:
    """x (W + A B^T)^T without the sum: x W^T + (x B) A^T.

    Args:
        x: (..., n).
        W: (m, n).
        A, B: the factors (r, m) and (r, n), rank first, with the scale of the noise included.

    Returns:
        (..., m). Under mx.vmap all members share one product with W (see `_population_product`).
    """
    return _perturbed_product(x, W, A, B)


_perturbed_product: Any = mx.custom_function(lambda x, W, A, B: x @ W.T + (x @ B.T) @ A)


@_perturbed_product.vmap
def _population_product(inputs: Sequence[mx.array], axes: Sequence[int | None]) -> tuple[mx.array, int]:
    """The vmap rule: outputs with a leading axis of members, and the number of this axis.

    The usual case is factors with a member axis and a W without one. Then the product with W is one matrix
    multiplication over the rows of all members, or, if the members share x, over the rows of x alone. The rule
    writes this product out, so that neither speed nor memory depends on how MLX batches a product with a shared W.
    """
    # A member axis may be anywhere; move it to the front. An axis of None marks an input that all members share.
    x, W, A, B = [v if axis is None else mx.moveaxis(v, axis, 0) for v, axis in zip(inputs, axes, strict=True)]
    x_varies, W_varies, A_varies, B_varies = (axis is not None for axis in axes)
    if not (W_varies or A_varies or B_varies):
        # The user's own vmap over inputs inside one member: the plain product handles any leading axes of x. The call
        # goes through the custom function again, so that an outer vmap over members finds this rule.
        return perturbed_product(x, W, A, B), 0
    if W_varies or not (A_varies and B_varies):
        # Several models, or only one factor that varies: nothing is shared, so this is a plain batched product.
        x, W, A, B = (v if axis is not None else v[None] for v, axis in zip((x, W, A, B), axes, strict=True))
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        y = rows @ W.swapaxes(1, 2) + (rows @ B.swapaxes(1, 2)) @ A
        return y.reshape(y.shape[0], *x.shape[1:-1], y.shape[-1]), 0
    members, rank, n = B.shape
    rows = x.reshape(-1, n)
    if x_varies:
        xB = x.reshape(members, -1, n) @ B.swapaxes(1, 2)
    else:
        # Shared x: the factors B of all members, stacked to (members r, n), are one matrix product with it.
        xB = (rows @ B.reshape(-1, n).T).reshape(-1, members, rank).swapaxes(0, 1)
    base = (rows @ W.T).reshape(*x.shape[:-1], -1)
    shape_of_one = x.shape[1:-1] if x_varies else x.shape[:-1]
    return base + (xB @ A).reshape(members, *shape_of_one, -1), 0


class _PerturbedLinear(nn.Linear):
    """The class of an nn.Linear while a member runs: the same object and weight, with the member's factors."""

    weight: mx.array
    bias: mx.array
    _factors: LowRank

    def __call__(self, x: mx.array) -> mx.array:
        y = perturbed_product(x, self.weight, *self._factors)
        return y + self.bias if "bias" in self else y


class _PerturbedEmbedding(nn.Embedding):
    """The class of an nn.Embedding while a member runs."""

    weight: mx.array
    _factors: LowRank

    def __call__(self, x: mx.array) -> mx.array:
        A, B = self._factors
        return self.weight[x] + A.T[x] @ B

    def as_linear(self, x: mx.array) -> mx.array:
        return perturbed_product(x, self.weight, *self._factors)


# Exact types only: a subclass may use its weight in any way, so its weight is replaced by the sum.
_PERTURBED: dict[type, type] = {nn.Linear: _PerturbedLinear, nn.Embedding: _PerturbedEmbedding}


@contextmanager
def perturbed(model: nn.Module, deltas: Noise) -> Iterator[nn.Module]:
    """The model with one member's perturbation, inside a `with` block; the user's own __call__ runs unchanged.

    An nn.Linear or nn.Embedding keeps its weight and computes with factors. For every other leaf (vectors, convolution
    kernels, weights of other layers) the sum of parameter and perturbation replaces the parameter. On exit the model
    is restored, including running statistics that the call changed.

    Args:
        deltas: leaf name -> perturbation of one member, sigma included (see `members_of`). Under mx.vmap over
            them the block runs for the whole population.
    """
    before = model.parameters()
    leaves = flat(before)
    layers = {f"{path}.weight" if path else "weight": layer for path, layer in model.named_modules()}
    swapped: list[tuple[nn.Module, type]] = []
    summed = []
    try:
        for name, delta in deltas.items():
            layer = layers.get(name)
            if layer is not None and isinstance(delta, LowRank) and type(layer) in _PERTURBED:
                swapped.append((layer, type(layer)))
                # nn.Module.__setattr__ would register the factors as parameters.
                object.__setattr__(layer, "_factors", delta)
                # A change of class, not a wrapper: the user's code may hold or reach the layer by any path.
                layer.__class__ = _PERTURBED[type(layer)]
            else:
                summed.append((name, leaves[name] + dense(delta, leaves[name].shape)))
        model.update(tree_unflatten(summed))
        yield model
    finally:
        for layer, kind in swapped:
            layer.__class__ = kind
            object.__delattr__(layer, "_factors")
        model.update(before)
