"""Evaluation of unperturbed parameters: the reference's integer bits per byte, and the exact figure.

EXP2 and LOG2 truncate, so the integer figure (spec section 8) is not quite a normalised code length; the exact one
is log2(sum 2^(l/16)) - l[target]/16 in float64 on the same logits (spec section 5). Its standard error, and its fall
after a document's start, come from each token's code length (code_lengths.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import ONE
from nanoegg_mlx.core.params import Params, check_params
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.code_lengths import CodeLengths, Position
from nanoegg_mlx.ranks.world import World
from nanoegg_mlx.store.tokens import check_vocabulary, checked_tokens

_WINDOW = 128
"""Tokens of a row in one call of the engine; bounds memory."""


def validation_rows(tokens: np.ndarray, rows: int) -> np.ndarray:
    """The first B m tokens as B rows of m = size // B, (B, m) uint8, read side by side from zero states.

    Raises:
        InputError: the text is too short for rows of two tokens, one to read and one to predict.
    """
    tokens = checked_tokens(tokens, "The validation token array")
    if len(tokens) < 2:
        raise InputError(f"The number of validation tokens is {len(tokens)}; it must be at least 2.")
    width = len(tokens) // rows
    if width < 2:
        raise InputError(
            f"validation_batch_size is {rows}; it must be from 1 to {len(tokens) // 2} for a validation text of "
            f"{len(tokens)} tokens, since a row needs two."
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
    """Two figures of one text, the standard error, and the extent of the measurement."""

    bits_per_byte: float
    """Section 8's figure, from integer scores."""
    exact_bits_per_byte: float
    """The normalised code length, float64."""
    standard_error: float | None
    """Of the exact figure, over documents (`CodeLengths.standard_error` has the formula); None for fewer than two."""
    documents: int
    """Number of documents, those at the ends of the text included; a document that rows cut counts once."""
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
    world: World | None = None,
) -> Evaluation:
    """All figures of a text, in one pass, in memory independent of its length.

    In a job of several processes each rank reads a share of the rows, and all ranks get the figures.

    Args:
        params, tokens, config: as for `validate`, and raising the same.
        progress: called with the number of tokens just read, of this rank's rows.
        world: the job's processes, all of which call this; by default this process alone.
    """
    started = time.perf_counter()
    world = World() if world is None else world
    rows = _checked_rows(params, tokens, config)
    share = world.share(len(rows))
    own = config.replace(threads=world.threads(config.threads))
    lengths = read_rows(params, rows[share.start : share.stop], own, progress)
    # A rank without a row has no estimate of the time that the others need for theirs.
    expected = time.perf_counter() - started if share else 30 * world.timeout
    return summarise(_gathered(lengths, len(rows), world, expected), time.perf_counter() - started)


def read_rows(
    params: Params, rows: np.ndarray, config: Config, progress: Callable[[int], object] = lambda tokens: None
) -> CodeLengths:
    """Code lengths of consecutive rows (B, m) uint8, each read from a zero state."""
    B, m = rows.shape
    lengths = CodeLengths(B)
    if B == 0:
        return lengths
    engine = make_engine(config)
    states = np.zeros((B, config.n_layer, config.n_embd), np.int8)
    for first in range(0, m - 1, _WINDOW):
        window = rows[:, first : first + _WINDOW + 1]
        inputs, targets = window[:, :-1], window[:, 1:]
        scored = engine.score(params, range(B), None, inputs, targets, states, exact=True)
        assert scored.code_lengths is not None
        states = scored.states
        lengths.add(inputs, scored.scores, scored.code_lengths)
        progress(inputs.size)
    return lengths


def summarise(lengths: CodeLengths, seconds: float) -> Evaluation:
    """The figures of a text, from the code lengths of all its rows."""
    documents, standard_error = lengths.standard_error()
    return Evaluation(
        bits_per_byte=lengths.bits_per_byte(),
        exact_bits_per_byte=lengths.exact_bits_per_byte(),
        standard_error=standard_error,
        documents=documents,
        by_position=lengths.by_position(),
        tokens=int(lengths.tokens.sum()),
        rows=len(lengths.bits),
        seconds=seconds,
    )


def _gathered(mine: CodeLengths, rows: int, world: World, expected: float) -> CodeLengths:
    """The code lengths of all rows, from those of every rank's share of them."""
    whole = CodeLengths(0)
    for name, values in vars(mine).items():
        setattr(whole, name, world.gather_shares(values, rows, "the validation figures", expected))
    return whole


def _checked_rows(params: Params, tokens: np.ndarray, config: Config) -> np.ndarray:
    """`validation_rows` of tokens that fit the parameters and the vocabulary."""
    check_params(params, config)
    rows = validation_rows(tokens, config.validation_batch_size)
    check_vocabulary(rows.reshape(-1), config.vocab_size)
    return rows
