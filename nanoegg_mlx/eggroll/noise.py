"""The noise of a population: keys, low-rank and dense draws, and their weighted sums.

No noise is stored. A draw is a function of (seed, step, leaf, draw) alone, so any part of it can be drawn again, in any
order and in chunks of any size, with the same bits: once to evaluate the members, once to sum over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

NoiseKind = Literal["lowrank", "full"]


class LowRank(NamedTuple):
    """The noise A B^T / sqrt(r) of an (m, n) matrix, factors stored with the rank first, as in the integer model.

    Leading axes are many draws at once. Then (draws, r) are neighbours: a sum over draws and ranks is one product of
    the flattened factors, and no factor has to be transposed in memory.
    """

    A: mx.array
    """(..., r, m)"""
    B: mx.array
    """(..., r, n)"""


Perturbation = LowRank | mx.array
"""Of a matrix: LowRank. Of a vector or scalar, and of every leaf if the noise is "full": dense, of the leaf's shape."""
Noise = dict[str, Perturbation]
"""Leaf name -> perturbation."""


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(m, n) of a leaf of two or more axes: the first axis by all others (outputs of a convolution by the rest)."""
    return shape[0], math.prod(shape[1:])


def draw_keys(seed: int, step: int, leaf: int, draws: range) -> mx.array:
    """The keys of some draws: uint32 (K, 2).

    Both words are hashed from (seed, step, leaf). The number of the draw is added to the second one (modulo 2^32), so
    the keys of one leaf in one step are distinct for up to 2^32 draws, and a range of draws costs one hash.
    """
    high, low = np.random.SeedSequence(seed, spawn_key=(step, leaf)).generate_state(2).tolist()
    number = mx.arange(draws.start, draws.stop, dtype=mx.uint32)
    return mx.stack([mx.full(len(draws), high, mx.uint32), number + mx.array(low, mx.uint32)], axis=1)


def draw(keys: mx.array, shape: Sequence[int], rank: int | None) -> Perturbation:
    """Standard normal noise for a leaf, a function of the keys alone.

    Args:
        keys: uint32 (K, 2), one for each draw.
        shape: of the leaf.
        rank: r of a low-rank draw, or None for a dense one; vectors and scalars are always dense.

    Returns:
        LowRank of float32 (K, r, m) and (K, r, n), or float32 (K, *shape).
    """

    def normals(count: int) -> mx.array:
        return mx.vmap(lambda key: mx.random.normal((count,), key=key))(keys)

    if rank is None or len(shape) < 2:
        return normals(math.prod(shape)).reshape(-1, *shape)
    m, n = matrix_shape(shape)
    # The generator fills (m + n, r) row by row. This order fixes the noise of a seed; the transposition only views it.
    factors = normals((m + n) * rank).reshape(-1, m + n, rank).swapaxes(1, 2)
    return LowRank(A=factors[..., :m], B=factors[..., m:])


def members_of(E: Perturbation, scale: float, antithetic: bool) -> Perturbation:
    """`scale` times the noise of each member.

    With antithetic pairs, draw k belongs to the neighbours 2 k (plus) and 2 k + 1 (minus); otherwise to member k.

    Args:
        E: noise with a leading axis of K draws.
        scale: sigma for perturbations. The factor 1 / sqrt(r) is included, so A B^T alone is a perturbation.

    Returns:
        The same with a leading axis of K members, or of 2 K in the order + - + -.
    """

    def signed(x: mx.array, scale: float) -> mx.array:
        x = scale * x
        return mx.flatten(mx.stack([x, -x], axis=1), 0, 1) if antithetic else x

    if not isinstance(E, LowRank):
        return signed(E, scale)
    # Sign and scale go into A alone: (-A) B^T = -(A B^T).
    A = signed(E.A, scale / math.sqrt(E.A.shape[-2]))
    return LowRank(A=A, B=mx.repeat(E.B, 2, axis=0) if antithetic else E.B)


def dense(delta: Perturbation, shape: Sequence[int]) -> mx.array:
    """A perturbation as an array of the leaf's shape. The layers that use factors never form it."""
    return (delta.A.swapaxes(-1, -2) @ delta.B if isinstance(delta, LowRank) else delta).reshape(shape)


def weighted_sum(E: Perturbation, weights: mx.array, shape: Sequence[int]) -> mx.array:
    """sum_k w_k E_k over draws, in one matrix product.

    Args:
        E: noise with a leading axis of K draws.
        weights: float32 (K,).
        shape: of the leaf.

    Returns:
        float32 (*shape), of rank at most K r if the noise is low-rank.
    """
    if not isinstance(E, LowRank):
        return (weights @ E.reshape(len(weights), -1)).reshape(shape)
    rank = E.A.shape[1]
    # (K, r, m) -> (K r, m): the sum over draws and ranks is the inner dimension of the product.
    A, B = (mx.flatten(factor, 0, 1) for factor in (weights[:, None, None] * E.A, E.B))
    return (A.T @ B / math.sqrt(rank)).reshape(shape)
