"""Evaluation of unperturbed parameters: the reference's integer bits per byte, and the exact figure.

EXP2 and LOG2 truncate, so the integer figure (spec section 8) is not quite a normalised code length; the exact one
is log2(sum 2^(l/16)) - l[target]/16 in float64 on the same logits (spec section 5).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.data import check_vocabulary, checked_tokens
from nanoegg_mlx.distributed import World
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.fixed_point import ONE
from nanoegg_mlx.params import Params, check_params

_WINDOW = 128
"""Tokens of a row between two reports of progress."""


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
    rows = _checked_rows(params, valid_tokens, config)
    B, m = rows.shape
    states = np.zeros((B, config.n_layer, config.n_embd), np.int8)
    scores = make_engine(config).score(params, range(B), None, rows[:, :-1], rows[:, 1:], states).scores
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


def evaluate(
    params: Params,
    tokens: np.ndarray,
    config: Config,
    progress: Callable[[int], object] = lambda tokens: None,
    world: World | None = None,
) -> Evaluation:
    """Both figures of a text, in one pass; in a job of several processes each rank reads a share of the rows.

    Args:
        params, tokens, config: as for `validate`, and raising the same.
        progress: called with the number of tokens just done, of this rank's rows.
        world: the job's processes, which all call this together; by default this one alone.
    """
    started = time.perf_counter()
    world = World() if world is None else world
    rows = _checked_rows(params, tokens, config)
    B, m = rows.shape
    share = world.share(B)
    scores, code_lengths = _read(
        params, rows[share.start : share.stop], config.replace(threads=world.threads(config.threads)), progress
    )
    seconds = time.perf_counter() - started
    # A rank without a row cannot tell how long the others may take for theirs.
    expected = seconds if share else 30 * world.timeout
    scores = world.gather_shares(scores, B, "the validation scores", expected)
    code_lengths = world.gather_shares(code_lengths, B, "the validation code lengths")
    predicted = B * m - B
    return Evaluation(
        bits_per_byte=-int(scores.sum()) / (ONE * predicted),
        # Rounded once, so that it does not matter how the rows were shared out.
        exact_bits_per_byte=math.fsum(code_lengths) / predicted,
        tokens=predicted,
        rows=B,
        seconds=time.perf_counter() - started,
    )


def _read(
    params: Params, rows: np.ndarray, config: Config, progress: Callable[[int], object]
) -> tuple[np.ndarray, np.ndarray]:
    """Score (B,) int64 and code length (B,) float64 of each of the rows (B, m) uint8."""
    B, m = rows.shape
    scores, code_lengths = np.zeros(B, np.int64), np.zeros(B)
    if B == 0:
        return scores, code_lengths
    engine = make_engine(config)
    states = np.zeros((B, config.n_layer, config.n_embd), np.int8)
    for first in range(0, m - 1, _WINDOW):
        window = rows[:, first : first + _WINDOW + 1]
        scored = engine.score(params, range(B), None, window[:, :-1], window[:, 1:], states, exact=True)
        assert scored.code_lengths is not None
        states = scored.states
        scores += scored.scores
        code_lengths += scored.code_lengths
        progress(B * (window.shape[1] - 1))
    return scores, code_lengths


def _checked_rows(params: Params, tokens: np.ndarray, config: Config) -> np.ndarray:
    """`validation_rows` of tokens that fit the parameters and the vocabulary."""
    check_params(params, config)
    rows = validation_rows(tokens, config.validation_batch_size)
    check_vocabulary(rows.reshape(-1), config.vocab_size)
    return rows
