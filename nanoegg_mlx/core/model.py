"""The network: one token through the integer minGRU, for one member (spec section 4).

Int8 weights, int32 arithmetic and shifts: no activation function, and no float that rounds. `forward` takes a single
member's state and token; `mx.vmap` batches it over members, which share the parameters and differ in their
perturbation. `forward` calls the `Perturbation` at each place where members may differ: at matrix products, embedding
rows and vectors (perturbed weights, noise.py) and at node vectors (nudged activations, coins.py).

In an operation on a member's scalar and vector, the vector is the first operand or the scalar keeps an axis. Otherwise
mx.vmap puts the batch axis last, and every later matmul runs on transposed memory, which is slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import mlx.core as mx

from nanoegg_mlx.core.fixed_point import MAX_INT8, ONE, clip, exact_matmul, floor_div
from nanoegg_mlx.core.params import Params

_MAX_PRODUCT = MAX_INT8 * MAX_INT8


class Tap(Protocol):
    """Receives activations: int32 arrays by their names in `forward`."""

    def __call__(self, layer: int, /, **activations: mx.array) -> None: ...


class Perturbation:
    """The perturbation of a member. This base class changes nothing: it is the model of validation and sampling.

    `layer` is None for leaves and nodes outside the layers. All arrays are int32.
    """

    def product(self, name: str, layer: int | None, y: mx.array, x: mx.array) -> mx.array:
        """Of the matrix `name`: y = W x, (o,), before the division; x (n,) is its input."""
        return y

    def embedding(self, token: mx.array, row: mx.array) -> mx.array:
        """Of the embedding's row (D,) of a token."""
        return row

    def vector(self, name: str, layer: int | None, v: mx.array) -> mx.array:
        """Of the bias or norm weight `name`, (d,)."""
        return v

    def node(self, name: str, layer: int | None, v: mx.array) -> mx.array:
        """Of the node vector `name` (f, c, a, b, head), (d,), before its clip."""
        return v


UNPERTURBED = Perturbation()


def view(x: mx.array, i: int) -> mx.array:
    """x[i], (...) of x (n, ...), as a view: MLX would copy it in a kernel of its own for an integer index."""
    return mx.squeeze(x[i : i + 1], 0)


def matmul(W: mx.array, x: mx.array, perturb: Callable[[mx.array, mx.array], mx.array] = lambda y, x: y) -> mx.array:
    """clip(perturb(W x, x) // (16 isqrt(n))): a matrix times a vector.

    Args:
        W: (o, n) integers in [-127, 127], of any dtype.
        x: (n,) int32 in [-127, 127].
        perturb: adds a member's term to the product, (o,) int32.

    Returns:
        (o,) int32 in [-127, 127].
    """
    y = perturb(exact_matmul(x, W.T, _MAX_PRODUCT), x)
    return clip(floor_div(y, ONE * math.isqrt(x.shape[-1])))


def norm_divisor(x: mx.array) -> mx.array:
    """max(sum |x|, 1) // D: the mean absolute value of x (D,) int32, as (1,) int32."""
    return mx.maximum(mx.sum(mx.abs(x), keepdims=True), 1) // x.shape[-1]


def norm(x: mx.array, weight: mx.array) -> mx.array:
    """x over its mean absolute value, times the weight: clip((x w) // d), d = max(sum |x|, 1) // D.

    A mean below 1 makes d zero; the quotient is then -1 where x w == 0 and -2 elsewhere, as in the reference's table.
    `x` and `weight` are (D,) int32, and so is the result.
    """
    d = norm_divisor(x)
    xw = x * weight
    quotient = mx.where(d == 0, mx.where(xw == 0, -1, -2), floor_div(xw, mx.maximum(d, 1)))
    return clip(quotient)


def forward(
    params: Params, perturbation: Perturbation, state: mx.array, token: mx.array, tap: Tap | None = None
) -> tuple[mx.array, mx.array]:
    """One token through the network, for one member.

    Args:
        params: leaf name -> integers in [-127, 127], of any dtype (`params.leaves` has the shapes).
        perturbation: the member's, or UNPERTURBED.
        state: (L, D) int8, the hidden state of every layer.
        token: integer scalar in [0, V); 0 separates documents and clears the state first.
        tap: receives each layer's activations (`last` is the state before the step), and as layer L those after the
            last one.

    Returns:
        logits (V,) int32 in [-127, 127], and the new state (L, D) int8.
    """

    def mat(name: str, x: mx.array, l: int | None = None) -> mx.array:
        W = params[name] if l is None else view(params[name], l)
        return matmul(W, x, partial(perturbation.product, name, l))

    def vec(name: str, l: int | None = None) -> mx.array:
        v = params[name] if l is None else view(params[name], l)
        return perturbation.vector(name, l, v.astype(mx.int32))

    node = perturbation.node
    state = state.astype(mx.int32) * (token != 0)
    x = perturbation.embedding(token, params["emb"][token].astype(mx.int32))
    new_state = []
    for l, last in enumerate(state):
        y = norm(x, vec("blocks.ln1.weight", l))
        f = mat("blocks.att.Wf", y, l) + mat("blocks.att.Uf", last, l) + vec("blocks.att.bf", l)
        f = clip(node("f", l, f)) + MAX_INT8
        g = (f * last) >> 8
        c = mat("blocks.att.Wh", y, l) + mat("blocks.att.Uh", g, l) + vec("blocks.att.bh", l)
        c = clip(node("c", l, c))
        h = last + ((f * (c - last)) >> 8)
        new_state.append(h.astype(mx.int8))
        r = clip(x + h)
        z = norm(r, vec("blocks.ln2.weight", l))
        hidden = clip(node("a", l, mat("blocks.mlp.0.weight", z, l)))
        if tap:
            tap(l, x=x, y=y, last=last, f=f, g=g, c=c, h=h, r=r, z=z, hidden=hidden)
        x = clip(r + node("b", l, mat("blocks.mlp.1.weight", hidden, l)))
    y = norm(x, vec("ln_out.weight"))
    logits = clip(node("head", None, mat("head", y)))
    if tap:
        tap(len(new_state), x=x, y=y, logits=logits)
    return logits, mx.stack(new_state)
