"""The network: one token through the integer minGRU, for one member (spec section 4).

Int8 weights, int32 arithmetic and shifts: no activation function, and no float that rounds. The functions take a
single member's state and token; `mx.vmap` batches them over members, which share the parameters and differ in their
noise. Without noise they are the unperturbed model.

Where a member's scalar meets its vector the vector stands first or the scalar keeps an axis: otherwise mx.vmap lays
the batch axis out last, and every matmul after that runs on transposed memory.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import mlx.core as mx

from nanoegg_mlx.core.fixed_point import MAX_INT8, ONE, clip, exact_matmul, floor_div
from nanoegg_mlx.core.noise import LowRank, Noise
from nanoegg_mlx.core.params import Params

_MAX_PRODUCT = MAX_INT8 * MAX_INT8


class Tap(Protocol):
    """Receives activations: int32 arrays by their names in `forward`."""

    def __call__(self, layer: int, /, **activations: mx.array) -> None: ...


def matmul(W: mx.array, x: mx.array, E: LowRank | None, shift: int) -> mx.array:
    """clip((W x + (A (B^T x)) >> shift) // (16 isqrt(n))): a perturbed matrix times a vector.

    Args:
        W: (o, n) integers in [-127, 127], of any dtype.
        x: (n,) int32 in [-127, 127].
        E: the member's low-rank perturbation of W, or None.
        shift: 4 + sigma_shift, applied to the whole perturbation term.

    Returns:
        (o,) int32 in [-127, 127].
    """
    y = exact_matmul(x, W.T, _MAX_PRODUCT)
    if E is not None:
        Bx = mx.sum(E.B.astype(mx.int32) * x, axis=-1)
        y = y + (sum(E.A[r].astype(mx.int32) * Bx[r] for r in range(Bx.shape[0])) >> shift)
    return clip(floor_div(y, ONE * math.isqrt(x.shape[-1])))


def embedding(W: mx.array, token: mx.array, E: LowRank | None, shift: int) -> mx.array:
    """clip(emb[t] + ((B A[t]) >> shift)): a perturbed row of the (V, D) embedding, (D,) int32."""
    row = W[token].astype(mx.int32)
    if E is None:
        return row
    BA = mx.sum(E.B.astype(mx.int32) * E.A[:, token].astype(mx.int32)[:, None], axis=0)
    return clip(row + (BA >> shift))


def vector(v: mx.array, E: mx.array | None, shift: int) -> mx.array:
    """clip(v + (E >> shift)): a perturbed bias or norm weight, (d,) int32."""
    v = v.astype(mx.int32)
    return v if E is None else clip(v + (E >> shift))


def norm_divisor(x: mx.array) -> mx.array:
    """max(sum |x|, 1) // D: the mean absolute value of x (D,) int32, as (1,) int32."""
    return mx.maximum(mx.sum(mx.abs(x), keepdims=True), 1) // x.shape[-1]


def norm(x: mx.array, weight: mx.array) -> mx.array:
    """x over its mean absolute value, times the weight: clip((x w) // d), d = max(sum |x|, 1) // D.

    A mean below 1 makes d zero; the quotient is then -1 where x w == 0 and -2 elsewhere, which is what the
    reference's table of quotients holds. `x` and `weight` are (D,) int32, and so is the result.
    """
    d = norm_divisor(x)
    xw = x * weight
    quotient = mx.where(d == 0, mx.where(xw == 0, -1, -2), floor_div(xw, mx.maximum(d, 1)))
    return clip(quotient)


def forward(
    params: Params, noise: Noise, shift: int, state: mx.array, token: mx.array, tap: Tap | None = None
) -> tuple[mx.array, mx.array]:
    """One token through the network, for one member.

    Args:
        params: leaf name -> integers in [-127, 127], of any dtype (`params.leaves` has the shapes).
        noise: the member's perturbations; empty for the unperturbed model.
        shift: 4 + sigma_shift.
        state: (L, D) int8, the hidden state of every layer.
        token: integer scalar in [0, V); 0 separates documents and clears the state first.
        tap: receives each layer's activations, and as layer L those after the last one.

    Returns:
        logits (V,) int32 in [-127, 127], and the new state (L, D) int8.
    """

    def perturbation(name: str, layer: int | None) -> Any:
        E = noise.get(name)
        if E is None or layer is None:
            return E
        return LowRank(E.A[layer], E.B[layer]) if isinstance(E, LowRank) else E[layer]

    def mat(name: str, x: mx.array, layer: int | None = None) -> mx.array:
        W = params[name] if layer is None else params[name][layer]
        return matmul(W, x, perturbation(name, layer), shift)

    def vec(name: str, layer: int | None = None) -> mx.array:
        v = params[name] if layer is None else params[name][layer]
        return vector(v, perturbation(name, layer), shift)

    state = state.astype(mx.int32) * (token != 0)
    x = embedding(params["emb"], token, perturbation("emb", None), shift)
    new_state = []
    for l, h in enumerate(state):
        y = norm(x, vec("blocks.ln1.weight", l))
        f = mat("blocks.att.Wf", y, l) + mat("blocks.att.Uf", h, l) + vec("blocks.att.bf", l)
        f = clip(f) + MAX_INT8
        g = (f * h) >> 8
        c = clip(mat("blocks.att.Wh", y, l) + mat("blocks.att.Uh", g, l) + vec("blocks.att.bh", l))
        h = h + ((f * (c - h)) >> 8)
        new_state.append(h.astype(mx.int8))
        r = clip(x + h)
        z = norm(r, vec("blocks.ln2.weight", l))
        hidden = mat("blocks.mlp.0.weight", z, l)
        if tap:
            tap(l, x=x, y=y, f=f, c=c, h=h, r=r, z=z, hidden=hidden)
        x = clip(r + mat("blocks.mlp.1.weight", hidden, l))
    y = norm(x, vec("ln_out.weight"))
    logits = mat("head", y)
    if tap:
        tap(len(new_state), x=x, y=y, logits=logits)
    return logits, mx.stack(new_state)
