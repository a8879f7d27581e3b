"""Decorrelated inputs: votes on a matrix whose inputs look uncorrelated and equally large (docs/decorrelation.md).

The inputs of a matrix are cut into blocks of 64. From the sums C of products of a block's inputs follows an inverse
square root G, and the block's votes Z become Z G: the votes on a matrix that reads G X. All numbers are fixed-point
integers. Products of matrices run in float64, whose sums are exact here: every partial sum is an integer below 2^53.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.activations import CHUNK, INPUT_OF, Moments

BLOCK = CHUNK
"""Inputs that are decorrelated together."""
_ONE = 1 << 20
_SHRINK = _ONE // 8
"""Added to the diagonal, whose mean is `_ONE`."""
_ROUNDS = 14
"""Of Newton's iteration: the least eigenvalue is above 1/600 of the largest, and grows 2.25-fold a round."""


def inverse_roots(C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """G, an inverse square root of C up to a factor, and V, the variances of the entries of G X.

    Args:
        C: (k, n, n) int64, k blocks' sums of products of n <= 64 inputs.

    Returns:
        G (k, n, n) and V (k, n), int64. With A = n C / trace(C), A' = A + 1/8 on the diagonal and N the largest row sum
        of |A'|, G is 2^10 (A' / N)^(-1/2), and V is 2^8 times the diagonal of G^T A G, both up to rounding.
    """
    n = C.shape[-1]
    identity = np.eye(n)
    trace = np.trace(C, axis1=-2, axis2=-1)
    excess = np.array([max(int(value).bit_length() - 36, 0) for value in trace])[:, None, None]
    scaled = ((C >> excess) * (n * _ONE)) // np.maximum(trace[:, None, None] >> excess, 1)
    A = scaled.astype(np.float64)
    shrunk = A + _SHRINK * identity
    norm = np.abs(shrunk).sum(axis=-1).max(axis=-1)[:, None, None]
    Y, Z = np.floor(shrunk * _ONE / norm), np.broadcast_to(_ONE * identity, A.shape)
    for _ in range(_ROUNDS):
        T = np.floor((3 * _ONE * identity - _shifted(Z @ Y)) / 2)
        Y, Z = _shifted(Y @ T), _shifted(T @ Z)
    G = np.floor(Z / 2**10)
    V = G.astype(np.int64) * np.floor(A @ G / 2**12).astype(np.int64)
    return G.astype(np.int64), V.sum(axis=-2)


def _shifted(product: np.ndarray) -> np.ndarray:
    return np.floor(product / _ONE)


def decorrelated(sums: Moments, config: Config) -> Moments:
    """The moments of a network whose matrices read decorrelated inputs; leaves that are no matrices keep theirs.

    Z becomes (Z G) >> 12, and S, in each block, sum(S) V >> 32, divided by the number of inputs.
    """
    roots = _roots({name: np.array(C) for name, C in sums.C.items()})
    Z, S = dict(sums.Z), dict(sums.S)
    for leaf, name in INPUT_OF.items():
        blocks = roots[name]
        Z[leaf] = mx.array(_votes(np.array(Z[leaf]), blocks))
        squares = "head.Y" if leaf == "head" and config.head_rule == "error" else leaf
        S[squares] = mx.array(_variances(np.array(S[squares]), blocks))
    return Moments(Z, S, {})


Roots = list[tuple[slice, np.ndarray, np.ndarray]]
"""Of each block: its inputs, G and V."""


def _roots(C: dict[str, np.ndarray]) -> dict[str, Roots]:
    """C: (..., inputs, BLOCK) by input, the rows of all blocks below each other."""
    places: dict[int, list[tuple[str, slice]]] = {}
    for name, products in C.items():
        for first in range(0, products.shape[-2], BLOCK):
            part = slice(first, min(first + BLOCK, products.shape[-2]))
            places.setdefault(part.stop - first, []).append((name, part))
    roots: dict[str, Roots] = {name: [] for name in C}
    for n, named in places.items():  # all blocks of a size at once
        blocks = [C[name][..., part, :n] for name, part in named]
        G, V = inverse_roots(np.concatenate([block.reshape(-1, n, n) for block in blocks]))
        first = 0
        for (name, part), block in zip(named, blocks, strict=True):
            own = slice(first, first + block.size // (n * n))
            roots[name].append((part, G[own].reshape(block.shape), V[own].reshape(block.shape[:-1])))
            first = own.stop
    return roots


def _votes(Z: np.ndarray, blocks: Roots) -> np.ndarray:
    """Z: (..., o, inputs)."""
    out = np.empty_like(Z)
    for part, G, _ in blocks:
        # A few rows at a time: the threads that a BLAS starts for larger products cost more than they save.
        for first in range(0, Z.shape[-2], BLOCK):
            rows = Z[..., first : first + BLOCK, part]
            # Two digits, so that the products are exact.
            high, low = _product(rows >> 26, G), _product(rows & ((1 << 26) - 1), G)
            out[..., first : first + BLOCK, part] = (high << 14) + (low >> 12)
    return out


def _variances(S: np.ndarray, blocks: Roots) -> np.ndarray:
    """S: (..., inputs). In Python's integers, since the products can overflow int64."""
    out = np.empty_like(S)
    for part, _, V in blocks:
        total = S[..., part].astype(object).sum(axis=-1, keepdims=True)
        out[..., part] = ((total * V.astype(object)) >> 32) // V.shape[-1]
    return out


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b of int64 whose sums stay below 2^53."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
