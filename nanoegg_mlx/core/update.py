"""The evolution step: scores -> fitness of pairs -> votes Z -> thresholded sign update (spec section 7).

An entry of a parameter moves by one, in the direction of its vote, if a two-sided Z-test rejects pure noise. All sums
are exact integers.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import MAX_INT8, ONE, clip, exact_matmul
from nanoegg_mlx.core.noise import LeafNoise, LowRank, Noise
from nanoegg_mlx.core.params import Params

MAX_NOISE = 86
"""Largest magnitude of a perturbation's draw."""


def fitness(scores: np.ndarray, fast: bool) -> np.ndarray:
    """The fitness of each antithetic pair.

    Args:
        scores: (N,) integers, even members first in each pair.
        fast: sign of the difference; otherwise the difference over its rms, in Q4 and clipped.

    Returns:
        (N/2,) int8: in {-1, 0, 1}, or in [-127, 127].
    """
    return fitness_of(differences(scores), fast)


def differences(scores: np.ndarray) -> np.ndarray:
    """(P,) int64: the even member's score minus the odd one's, for each pair, from (2 P,) integer scores."""
    return scores[0::2].astype(np.int64) - scores[1::2]


def fitness_of(differences: np.ndarray, fast: bool) -> np.ndarray:
    """`fitness` from the differences of all pairs, (N/2,) integers."""
    if fast:
        return np.sign(differences).astype(np.int8)
    rms = max(math.isqrt(sum_of_squares(differences) // len(differences)), 1)
    return np.clip(ONE * differences.astype(np.int64) // rms, -MAX_INT8, MAX_INT8).astype(np.int8)


def sum_of_squares(values: np.ndarray) -> int:
    """The exact sum of the squares of (n,) integers below 2^33 in magnitude, n at most 2^31."""
    squares = np.square(values.astype(np.int64)).view(np.uint64)
    # The sum could overflow 64 bits; the sums of the high and of the low halves cannot.
    return (int((squares >> np.uint64(32)).sum()) << 32) + int((squares & np.uint64(0xFFFFFFFF)).sum())


def alpha_at(config: Config, epoch: int) -> float:
    """The share of entries that pure noise would move in this epoch."""
    if config.alpha <= 1:
        return config.alpha
    return 1 / ((2**config.alpha - 1) * (epoch / config.alpha_decay_timestep) + 1)


def threshold_at(config: Config, epoch: int) -> int:
    """The two-sided Z-test's threshold, in sixteenths of a standard deviation."""
    tail = alpha_at(config, epoch) / 2
    if 1 - tail == 1:  # tail is below the resolution at 1: use the lower tail, equal by symmetry
        return math.trunc(-ONE * NormalDist().inv_cdf(tail))
    return math.trunc(ONE * NormalDist().inv_cdf(1 - tail))


def vote_bound(config: Config, epoch: int) -> int:
    """`bound` of section 7: an entry with 16 |Z| below it stays."""
    return _bound_of_one(config, epoch) * math.isqrt(config.pairs)


def embedding_bounds(config: Config, epoch: int, reads: np.ndarray) -> np.ndarray:
    """The bounds of the embedding's rows if only those who have read a byte vote on it (docs/perturbed-weights.md).

    Args:
        reads: (lanes, V) bool, the bytes among each lane's inputs of the epoch.

    Returns:
        (V,) int64: `bound` from the number of pairs that vote on the row. Where there is none, Z is 0 and the bound 1,
        so that the row stays.
    """
    voters = reads.sum(axis=0) * (config.group // 2)
    one = _bound_of_one(config, epoch)
    return np.array([one * math.isqrt(n) if n else 1 for n in voters.tolist()], np.int64)


def _bound_of_one(config: Config, epoch: int) -> int:
    """The bound of an entry with a single voter."""
    return threshold_at(config, epoch) * (256 if config.use_clt else 1)


def vote_dtype(config: Config) -> mx.Dtype:
    """int32 if no vote of this population can overflow it, else int64."""
    largest_fitness = 1 if config.fast_fitness else MAX_INT8
    largest = config.pairs * config.rank * MAX_NOISE**2 * largest_fitness
    return mx.int32 if largest < 2**31 else mx.int64


def votes(E: LeafNoise, fitness: mx.array, use_clt: bool, dtype: mx.Dtype) -> mx.array:
    """Z = sum over pairs of fit_p A_p B_p^T (matrix) or fit_p E_p (vector), exact.

    Args:
        E: the noise of a leaf, its factors or vectors with a leading axis of P pairs and, for stacked
            leaves, L layers after it.
        fitness: (P,) int8.
        use_clt: False replaces A, B and E by their signs.
        dtype: of the result, mx.int32 or mx.int64.

    Returns:
        (o, n) or (d,), under a layer axis if there is one.
    """
    if not isinstance(E, LowRank):
        vectors = E if use_clt else mx.sign(E)
        weights = fitness.astype(dtype).reshape(-1, *[1] * (vectors.ndim - 1))
        return mx.sum(weights * vectors.astype(dtype), axis=0)
    if E.B.ndim == 4:
        return mx.stack(
            [votes(LowRank(E.A[:, layer], E.B[:, layer]), fitness, use_clt, dtype) for layer in range(E.B.shape[1])]
        )
    A, B = (E.A, E.B) if use_clt else (mx.sign(E.A), mx.sign(E.B))
    # The sum over pairs and ranks is one matrix product. fit A has up to 14 bits and is split into two digits:
    # an operand of more than 11 bits would not be exact in TF32, and the slices of the sum would be narrow.
    fitA = mx.flatten(fitness.astype(mx.int32)[:, None, None] * A.astype(mx.int32), 0, 1)
    B = mx.flatten(B, 0, 1)
    high = (fitA + 64) >> 7
    low = fitA - (high << 7)
    max_product = MAX_NOISE * MAX_NOISE
    Z = exact_matmul(low.T, B, max_product).astype(dtype)
    return Z + (exact_matmul(high.T, B, max_product).astype(dtype) << 7)


def add_votes(
    Z: dict[str, mx.array], noise: Noise, fitness: mx.array, config: Config, reads: mx.array | None = None
) -> dict[str, mx.array]:
    """The votes of one more chunk of pairs, added to those of the chunks before.

    Args:
        Z: of the chunks before; may be empty.
        noise: leaf name -> noise of the chunk's P pairs.
        fitness: (P,) int8.
        reads: (P, V) bool, the bytes that each pair has read, if the pair votes on their embeddings only.
    """
    dtype = vote_dtype(config)
    if reads is not None:
        emb = noise["emb"]
        assert isinstance(emb, LowRank)
        noise = {**noise, "emb": LowRank(emb.A * reads[:, None, :], emb.B)}
    more = {name: votes(E, fitness, config.use_clt, dtype) for name, E in noise.items()}
    return {name: Z[name] + more[name] if Z else more[name] for name in more}


def move(parameter: mx.array, Z: mx.array, bound: int | np.ndarray, fast_fitness: bool) -> mx.array:
    """One step of each entry along its vote: +1 if Z > 0, else -1; entries with 16 |Z| < bound stay.

    Args:
        parameter: int8, any shape.
        Z: int32 or int64 votes of the same shape; with normalised fitness still in Q4.
        bound: `vote_bound` of the epoch, or `embedding_bounds`, one for each row.

    Returns:
        int8, clipped to [-127, 127].
    """
    if not fast_fitness:
        Z = Z >> 4
    # 16 |Z| < bound, without the product that could overflow.
    least = -(-bound // ONE)
    stays = mx.abs(Z) < (least if isinstance(least, int) else mx.array(least)[:, None])
    direction = mx.where(stays, 0, mx.where(Z > 0, 1, -1))
    return clip(parameter.astype(mx.int32) + direction).astype(mx.int8)


def step(params: Params, Z: dict[str, mx.array], config: Config, epoch: int, reads: np.ndarray | None = None) -> Params:
    """The parameters after an epoch's votes: `move` of every leaf, evaluated. `params` are not changed.

    Args:
        params: leaf name -> int8 array.
        Z: leaf name -> votes of all pairs, `vote_dtype`.
        epoch: selects the threshold.
        reads: (lanes, V) bool, the bytes among each lane's inputs of the epoch, with `sparse_embedding`; else None.
    """
    bounds: dict[str, int | np.ndarray] = dict.fromkeys(params, vote_bound(config, epoch))
    if reads is not None:
        bounds["emb"] = embedding_bounds(config, epoch, reads)
    moved = {name: move(params[name], Z[name], bounds[name], config.fast_fitness) for name in params}
    mx.eval(moved)
    return moved
