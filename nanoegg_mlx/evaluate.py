"""Evaluation of unperturbed parameters: the reference's integer bits per byte, and the exact figure.

EXP2 and LOG2 truncate, so the integer figure (spec section 8) is not quite a normalised code length; the exact one
is log2(sum 2^(l/16)) - l[target]/16 in float64 on the same logits (spec section 5).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.data import check_vocabulary, checked_tokens
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.fixed_point import ONE
from nanoegg_mlx.params import Params, check_params
from nanoegg_mlx.score import evaluation_step, resident_weights

_WINDOW = 64
"""Columns of tokens whose logits are held at a time."""


def validation_rows(tokens: np.ndarray, rows: int) -> np.ndarray:
    """The first B m tokens as B rows of m = size // B, (B, m) uint8, read side by side from zero states.

    Raises:
        InputError: the text is too short for rows of two tokens, one to read and one to predict.
    """
    tokens = checked_tokens(tokens, "The validation token array")
    width = len(tokens) // rows
    if width < 2:
        raise InputError(
            f"The validation text has {len(tokens)} tokens, but validation_batch_size = {rows} needs at least "
            f"{2 * rows}; allowed here is 1 to {len(tokens) // 2}."
        )
    return tokens[: rows * width].reshape(rows, width)


def validate(params: Params, valid_tokens: np.ndarray, config: Config) -> tuple[np.ndarray, float]:
    """The reference's validation figure (spec section 8).

    Args:
        params: leaf name -> int8 array.
        valid_tokens: (size,) uint8.
        config: `validation_batch_size` is B.

    Returns:
        The score of each row, (B,) int64 in sixteenths of a bit, and the bits per byte.

    Raises:
        InputError: parameters of other shapes than the config's, or too short a text.
    """
    check_params(params, config)
    rows = validation_rows(valid_tokens, config.validation_batch_size)
    check_vocabulary(rows.reshape(-1), config.vocab_size)
    B, m = rows.shape
    states = np.zeros((B, config.n_layer, config.n_embd), np.int8)
    scores, _ = make_engine(config).score(params, range(B), None, rows[:, :-1], rows[:, 1:], states)
    return scores, -int(scores.sum()) / (ONE * (B * m - B))


@dataclass(frozen=True)
class Evaluation:
    """Two figures of one text, and what they were measured on."""

    bits_per_byte: float
    """Section 8's figure, from integer scores."""
    exact_bits_per_byte: float
    """The normalised code length, float64."""
    tokens: int
    """Tokens that were predicted, B m - B."""
    rows: int
    seconds: float


def code_lengths(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """log2(sum 2^(l/16)) - l[target]/16: exact code lengths in bits.

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


def evaluate(
    params: Params,
    tokens: np.ndarray,
    config: Config,
    progress: Callable[[int], object] = lambda tokens: None,
) -> Evaluation:
    """Both figures of a text, in one pass.

    Args:
        params, tokens, config: as for `validate`, and raising the same.
        progress: called with the number of tokens just done.
    """
    started = time.perf_counter()
    check_params(params, config)
    rows = validation_rows(tokens, config.validation_batch_size)
    check_vocabulary(rows.reshape(-1), config.vocab_size)
    B, m = rows.shape
    weights = resident_weights(params)
    states = mx.zeros((B, config.n_layer, config.n_embd), dtype=mx.int8)
    step = evaluation_step()
    score, code_length = 0, 0.0
    for first in range(0, m - 1, _WINDOW):
        window = rows[:, first : first + _WINDOW + 1]
        scores, logits = [], []
        for t in range(window.shape[1] - 1):
            token, target = mx.array(window[:, t]), mx.array(window[:, t + 1])
            step_scores, step_logits, states = step(weights, states, token, target)
            scores.append(step_scores)
            logits.append(step_logits)
        mx.eval(scores, logits, states)
        score += int(np.sum(np.array(scores), dtype=np.int64))
        for t, column in enumerate(logits):
            code_length += float(code_lengths(np.array(column), window[:, t + 1]).sum())
        progress(B * len(logits))
    predicted = B * m - B
    return Evaluation(
        bits_per_byte=-score / (ONE * predicted),
        exact_bits_per_byte=code_length / predicted,
        tokens=predicted,
        rows=B,
        seconds=time.perf_counter() - started,
    )
