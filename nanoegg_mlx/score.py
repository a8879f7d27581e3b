"""The generate-and-score loop: every member reads its tokens and is scored on the next ones (spec section 5).

Single-member functions, vmapped over a chunk of members and compiled; a Python loop scans the tokens, and the lazy
graph is evaluated once per chunk. A score is a log-likelihood in sixteenths of a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mlx.core as mx

from nanoegg_mlx.fixed_point import EXP2, LOG2_STEPS
from nanoegg_mlx.model import forward
from nanoegg_mlx.noise import Noise
from nanoegg_mlx.params import Params


def log_likelihood(logits: mx.array, target: mx.array) -> mx.array:
    """l[target] - LOG2(sum EXP2[l]) with l = logits + 128.

    Args:
        logits: (V,) int32 in [-127, 127].
        target: integer scalar in [0, V).

    Returns:
        int32 scalar, in sixteenths of a bit, at most 0 but for the truncation of EXP2 and LOG2.
    """
    l = logits + 128
    total = mx.sum(mx.take(mx.array(EXP2, dtype=mx.int32), l))
    log2 = mx.sum((mx.array(LOG2_STEPS, dtype=mx.int32) <= total).astype(mx.int32))
    return l[target] - log2


def resident_weights(params: Params) -> Params:
    """The parameters as the scoring loop wants them: float32, converted once instead of at every token.

    Matrices keep their (o, n) shape but lie in memory as W^T, which is what matmul multiplies by: the reference
    BLAS under MLX's CPU back end is up to six times faster so, and no device is slower.
    """
    weights = {}
    for name, value in params.items():
        value = value.astype(mx.float32)
        is_matrix = value.ndim - name.startswith("blocks.") == 2 and name != "emb"
        weights[name] = mx.contiguous(value.swapaxes(-1, -2)).swapaxes(-1, -2) if is_matrix else value
    mx.eval(weights)
    return weights


Step = Callable[..., tuple[mx.array, mx.array]]


@cache
def scoring_step(shift: int) -> Step:
    """The compiled step of many members: (params, noise, states, tokens, targets) -> (scores, states).

    Args:
        shift: 4 + sigma_shift.
    """

    def one_member(
        params: Params, noise: Noise, state: mx.array, token: mx.array, target: mx.array
    ) -> tuple[mx.array, mx.array]:
        logits, state = forward(params, noise, shift, state, token)
        return log_likelihood(logits, target), state

    return mx.compile(mx.vmap(one_member, in_axes=(None, 0, 0, 0, 0)))


@cache
def evaluation_step() -> Callable[..., tuple[mx.array, mx.array, mx.array]]:
    """The compiled unperturbed step that also gives logits, for many rows of text.

    (params, states (B, L, D), tokens (B,), targets (B,)) -> (scores (B,) int32, logits (B, V) int8, states).
    """

    def one_row(
        params: Params, state: mx.array, token: mx.array, target: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        logits, state = forward(params, {}, 0, state, token)
        return log_likelihood(logits, target), logits.astype(mx.int8), state

    return mx.compile(mx.vmap(one_row, in_axes=(None, 0, 0, 0)))


def score_tokens(
    params: Params,
    noise: Noise,
    shift: int,
    states: mx.array,
    inputs: mx.array,
    targets: mx.array,
) -> tuple[mx.array, mx.array]:
    """Reads every member's inputs, token after token, and adds up its scores. Lazy: the caller evaluates.

    Args:
        params: leaf name -> integers in [-127, 127], shared by all members.
        noise: perturbations with a leading axis of N members; empty for the unperturbed model.
        shift: 4 + sigma_shift.
        states: (N, L, D) int8.
        inputs, targets: (N, T) uint8.

    Returns:
        scores (N,) int32, in sixteenths of a bit, and the states after the last token, (N, L, D) int8.
    """
    step = scoring_step(shift)
    scores = mx.zeros((states.shape[0],), dtype=mx.int32)
    for t in range(inputs.shape[1]):
        score, states = step(params, noise, states, inputs[:, t], targets[:, t])
        scores = scores + score
    return scores, states
