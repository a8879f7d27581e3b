"""Evaluation of unperturbed parameters: the reference's integer bits per byte, and the exact figure.

EXP2 and LOG2 truncate, so the integer figure (spec section 8) is not quite a normalised code length; the exact one
is log2(sum 2^(l/16)) - l[target]/16 in float64 on the same logits (spec section 5). How sure it is, and how it falls
after a document's start, comes from each token's code length (documents.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.data import check_vocabulary, checked_tokens
from nanoegg_mlx.documents import Position, Tally
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.fixed_point import ONE
from nanoegg_mlx.params import Params, check_params

_WINDOW = 128
"""Tokens of a row that are read at a time, which bounds memory."""


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
    """Two figures of one text, how sure they are, and what they were measured on."""

    bits_per_byte: float
    """Section 8's figure, from integer scores."""
    exact_bits_per_byte: float
    """The normalised code length, float64."""
    standard_error: float | None
    """Of the exact figure, over documents (`Tally.standard_error` has the formula); None for fewer than two."""
    documents: int
    """Documents that the text has, or has parts of; one that rows cut is one."""
    by_position: tuple[Position, ...]
    """The exact figure by distance from the document's start."""
    tokens: int
    """Tokens that were predicted, B m - B."""
    rows: int
    seconds: float


def evaluate(
    params: Params,
    tokens: np.ndarray,
    config: Config,
    progress: Callable[[int], object] = lambda tokens: None,
) -> Evaluation:
    """All figures of a text, in one pass, in memory that its length does not matter for.

    Args:
        params, tokens, config: as for `validate`, and raising the same.
        progress: called with the number of tokens just done.
    """
    started = time.perf_counter()
    rows = _checked_rows(params, tokens, config)
    return summarise(read_rows(params, rows, config, progress), time.perf_counter() - started)


def read_rows(
    params: Params, rows: np.ndarray, config: Config, progress: Callable[[int], object] = lambda tokens: None
) -> Tally:
    """What each of some consecutive rows (B, m) uint8 costs, read from a zero state."""
    B, m = rows.shape
    engine = make_engine(config)
    states = np.zeros((B, config.n_layer, config.n_embd), np.int8)
    tally = Tally(B)
    for first in range(0, m - 1, _WINDOW):
        window = rows[:, first : first + _WINDOW + 1]
        inputs, targets = window[:, :-1], window[:, 1:]
        scored = engine.score(params, range(B), None, inputs, targets, states, exact=True)
        assert scored.code_lengths is not None
        states = scored.states
        tally.add(inputs, scored.scores, scored.code_lengths)
        progress(inputs.size)
    return tally


def summarise(tally: Tally, seconds: float) -> Evaluation:
    """The figures of a text whose rows have all been read."""
    documents, standard_error = tally.standard_error()
    return Evaluation(
        bits_per_byte=tally.bits_per_byte(),
        exact_bits_per_byte=tally.exact_bits_per_byte(),
        standard_error=standard_error,
        documents=documents,
        by_position=tally.by_position(),
        tokens=int(tally.tokens.sum()),
        rows=len(tally.bits),
        seconds=seconds,
    )


def _checked_rows(params: Params, tokens: np.ndarray, config: Config) -> np.ndarray:
    """`validation_rows` of tokens that fit the parameters and the vocabulary."""
    check_params(params, config)
    rows = validation_rows(tokens, config.validation_batch_size)
    check_vocabulary(rows.reshape(-1), config.vocab_size)
    return rows
