"""The generate-and-score loop: every member reads its tokens and is scored on the next ones (spec section 5).

Single-member functions, vmapped over a chunk of members and compiled; a Python loop scans the tokens, and the lazy
graph is evaluated once per chunk. A score is a log-likelihood in sixteenths of a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from nanoegg_mlx.core.fixed_point import EXP2, LOG2_STEPS, ONE
from nanoegg_mlx.core.model import UNPERTURBED, forward
from nanoegg_mlx.core.noise import Noise, PerturbedWeights
from nanoegg_mlx.core.params import Params


def log2_sum(l: mx.array) -> mx.array:
    """LOG2(sum EXP2[l]), the logarithm of the sum of a distribution's powers.

    Args:
        l: (V,) int32 in [0, 255].

    Returns:
        int32 scalar, in sixteenths of a bit.
    """
    total = mx.sum(mx.take(mx.array(EXP2, dtype=mx.int32), l))
    return mx.sum((mx.array(LOG2_STEPS, dtype=mx.int32) <= total).astype(mx.int32))


def log_likelihood(logits: mx.array, target: mx.array) -> mx.array:
    """l[target] - LOG2(sum EXP2[l]) with l = logits + 128.

    Args:
        logits: (V,) int32 in [-127, 127].
        target: integer scalar in [0, V).

    Returns:
        int32 scalar, in sixteenths of a bit, at most 0 except for the truncation of EXP2 and LOG2.
    """
    l = logits + 128
    return l[target] - log2_sum(l)


def resident_weights(params: Params) -> Params:
    """The parameters for the scoring loop, converted once instead of at every token.

    Matrices are float32, vectors int32. Matrices keep their (o, n) shape but lie in memory as W^T, the operand of the
    product. With this layout the reference BLAS under MLX's CPU back end is up to six times faster, and no device is
    slower.
    """
    weights = {}
    for name, value in params.items():
        is_vector = value.ndim - name.startswith("blocks.") == 1
        value = value.astype(mx.int32 if is_vector else mx.float32)
        transposed = not is_vector and name != "emb"
        weights[name] = mx.contiguous(value.swapaxes(-1, -2)).swapaxes(-1, -2) if transposed else value
    mx.eval(weights)
    return weights


class Scored(NamedTuple):
    """Results of scoring members on their tokens."""

    scores: np.ndarray
    """(N,) int64, sums of log-likelihoods in sixteenths of a bit."""
    states: np.ndarray
    """(N, L, D) int8, after the last token."""
    code_lengths: np.ndarray | None
    """(N, T) float64, the exact code length of every target in bits, if requested."""


@cache
def scoring_step(shift: int) -> Callable[..., tuple[mx.array, mx.array, mx.array]]:
    """The compiled step of many members, for perturbations shifted right by `shift` = 4 + sigma_shift.

    (params, noise, states (N, L, D), tokens (N,), targets (N,)) -> (scores (N,) int32, states, logits (N, V) int8).
    """

    def one_member(
        params: Params, noise: Noise, state: mx.array, token: mx.array, target: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        perturbation = PerturbedWeights(noise, shift) if noise else UNPERTURBED
        logits, state = forward(params, perturbation, state, token)
        return log_likelihood(logits, target), state, logits.astype(mx.int8)

    return mx.compile(mx.vmap(one_member, in_axes=(None, 0, 0, 0, 0)))


def score_tokens(
    params: Params,
    noise: Noise,
    shift: int,
    states: mx.array,
    inputs: mx.array,
    targets: mx.array,
) -> tuple[mx.array, mx.array, list[mx.array]]:
    """Reads every member's inputs, token after token, and adds up its scores. Lazy: the caller evaluates.

    Args:
        params: leaf name -> integers in [-127, 127], shared by all members.
        noise: perturbations with a leading axis of N members; empty for the unperturbed model.
        shift: 4 + sigma_shift.
        states: (N, L, D) int8.
        inputs, targets: (N, T) uint8.

    Returns:
        scores (N,) int32 in sixteenths of a bit, the states after the last token (N, L, D) int8, and the T
        logits (N, V) int8, which MLX computes only if they are evaluated.
    """
    step = scoring_step(shift)
    scores = mx.zeros((states.shape[0],), dtype=mx.int32)
    all_logits = []
    for t in range(inputs.shape[1]):
        score, states, logits = step(params, noise, states, inputs[:, t], targets[:, t])
        scores = scores + score
        all_logits.append(logits)
    return scores, states, all_logits


def code_lengths(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """log2(sum 2^(l/16)) - l[target]/16, in real arithmetic: exact code lengths in bits (spec section 5).

    Args:
        logits: (..., V) int8.
        targets: (...) integers in [0, V).

    Returns:
        (...) float64.
    """
    powers = np.exp2(np.arange(-128, 128) / ONE)
    total = powers[logits.astype(np.int16) + 128].sum(axis=-1)
    chosen = np.take_along_axis(logits, targets[..., None].astype(np.int64), axis=-1)[..., 0]
    return np.log2(total) - chosen / ONE
