"""Hashed-key perturbations of a population member: low-rank for matrices, dense for vectors (spec section 3).

Nothing is stored. A pair's noise for a leaf is a stretch of one long sequence of integer normals; its start is a
hash of the leaf's key, the epoch and the pair's number. Both members of a pair share the stretch, the odd one with
the opposite sign.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import mlx.core as mx

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import clip
from nanoegg_mlx.core.model import Perturbation, view
from nanoegg_mlx.core.params import leaf_keys, leaves
from nanoegg_mlx.core.rng import fold_in, int_normals, key

_SEQUENCE_LENGTH = 1 << 30


class LowRank(NamedTuple):
    """The perturbation A B^T of an (o, n) matrix, factors with the rank first: each rank is one contiguous row."""

    A: mx.array
    """(rank, o) int8; under a layer axis, (L, rank, o)."""
    B: mx.array
    """(rank, n) int8; under a layer axis, (L, rank, n)."""


LeafNoise = LowRank | mx.array
"""LowRank for a matrix; for a (d,) vector the dense E, int32 of the vector's shape."""
Noise = dict[str, LeafNoise]
"""Leaf name -> noise, for one pair or member, or for many under a leading axis."""


def perturb_product(y: mx.array, x: mx.array, E: LowRank, shift: int) -> mx.array:
    """W x + ((A (B^T x)) >> shift), from y = W x (o,) and x (n,), int32: a perturbed matrix times a vector."""
    Bx = mx.sum(E.B.astype(mx.int32) * x, axis=-1)
    return y + (sum(view(E.A, r).astype(mx.int32) * Bx[r : r + 1] for r in range(Bx.shape[0])) >> shift)


def perturb_embedding(row: mx.array, token: mx.array, E: LowRank, shift: int) -> mx.array:
    """clip(emb[t] + ((B A[t]) >> shift)): a perturbed row (D,) int32 of the embedding."""
    BA = mx.sum(E.B.astype(mx.int32) * E.A[:, token].astype(mx.int32)[:, None], axis=0)
    return clip(row + (BA >> shift))


def perturb_vector(v: mx.array, E: mx.array, shift: int) -> mx.array:
    """clip(v + (E >> shift)): a perturbed bias or norm weight, (d,) int32."""
    return clip(v + (E >> shift))


class PerturbedWeights(Perturbation):
    """The perturbation of one member's weights."""

    def __init__(self, noise: Noise, shift: int) -> None:
        """Args: noise, the member's own, its sign included; shift, 4 + sigma_shift, applied to a whole term."""
        self._noise, self._shift = noise, shift

    def product(self, name: str, layer: int | None, y: mx.array, x: mx.array) -> mx.array:
        E = cast(LowRank, self._noise[name])
        return perturb_product(y, x, E if layer is None else LowRank(view(E.A, layer), view(E.B, layer)), self._shift)

    def embedding(self, token: mx.array, row: mx.array) -> mx.array:
        return perturb_embedding(row, token, cast(LowRank, self._noise["emb"]), self._shift)

    def vector(self, name: str, layer: int | None, v: mx.array) -> mx.array:
        E = cast(mx.array, self._noise[name])
        return perturb_vector(v, E if layer is None else view(E, layer), self._shift)


def leaf_bases(config: Config, epoch: int) -> dict[str, mx.array]:
    """The word that each leaf contributes to the hash in this epoch: uint32 (L,) or ()."""
    true_epoch = epoch // config.noise_reuse if config.noise_reuse else 0
    keys = leaf_keys(config)
    # One fold for all leaves: this runs in every epoch.
    words = fold_in(mx.concatenate([of_leaf.reshape(-1, 2) for of_leaf in keys.values()]), true_epoch)[:, 0]
    bases, start = {}, 0
    for name, of_leaf in keys.items():
        count = of_leaf.size // 2
        bases[name] = words[start : start + count].reshape(of_leaf.shape[:-1])
        start += count
    mx.eval(bases)
    return bases


def noise_pair(config: Config, pair: int | mx.array) -> int | mx.array:
    """The pair of which `pair` uses the noise: `pair`, or with `num_perturbations` the one that it repeats."""
    return pair % (config.num_perturbations // 2) if config.num_perturbations else pair


def stretch_start(base: mx.array, pair: mx.array, length: int) -> mx.array:
    """The start of a pair's stretch of `length` draws: uint32 of the shape of `base`, for one pair."""
    h = ((pair >> 16) ^ pair) * mx.array(0x45D9F3B, dtype=mx.uint32)
    # mx.vmap (0.32) broadcasts the operands of an addition, but not those of a bitwise operation.
    h, base = h + base * 0, base + h * 0
    start = (h ^ base) & mx.array(_SEQUENCE_LENGTH - 1, dtype=mx.uint32)
    return mx.minimum(start, mx.array(_SEQUENCE_LENGTH - length, dtype=mx.uint32))


def pair_noise(config: Config, bases: dict[str, mx.array], pair: mx.array) -> Noise:
    """The noise of one pair with the even member's sign, regenerated from its number.

    Args:
        config: seed, rank and shapes.
        bases: `leaf_bases` of the epoch.
        pair: uint32 scalar; vmap over it for many pairs.

    Returns:
        Leaf name -> noise, layers stacked in the first axis.
    """
    noise_key = key(config.seed)
    noise: Noise = {}
    for leaf in leaves(config):
        columns = config.rank if leaf.kind == "matrix" else 2
        length = columns * sum(leaf.shape)
        start = stretch_start(bases[leaf.name], pair, length)[..., None, None]

        def rows(first: int, count: int, start: mx.array = start, columns: int = columns) -> mx.array:
            """Rows first..first+count of the stretch read as (length / columns, columns), transposed."""
            row = mx.arange(first, first + count, dtype=mx.uint32)
            column = mx.arange(columns, dtype=mx.uint32)[:, None]
            return int_normals(noise_key, start + row * columns + column)

        if leaf.kind == "vector":
            factors = rows(0, leaf.shape[0]).astype(mx.int32)
            noise[leaf.name] = factors[..., 0, :] * factors[..., 1, :]
        else:
            o, n = leaf.shape
            noise[leaf.name] = LowRank(B=rows(0, n), A=rows(n, o))
    return noise


def member_noise(pairs_noise: Noise) -> Noise:
    """The noise of both members of each pair: A, or a vector's E, times +1 for the even and -1 for the odd one.

    Args:
        pairs_noise: leaf name -> noise with a leading axis of P pairs.

    Returns:
        The same with a leading axis of 2 P members, in the order even, odd, even, odd.
    """

    def both(x: mx.array) -> mx.array:
        return mx.flatten(mx.stack([x, -x], axis=1), 0, 1)

    return {
        name: LowRank(A=both(E.A), B=mx.repeat(E.B, 2, axis=0)) if isinstance(E, LowRank) else both(E)
        for name, E in pairs_noise.items()
    }
