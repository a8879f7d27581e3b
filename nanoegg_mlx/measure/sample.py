"""Text from a model, byte by byte, the same for a seed on every machine and engine.

Logits are integers, and the probability of a byte is proportional to 2^(l / (16 temperature)) (spec section 5). All
later steps use integers too. The weights come from a table of integers with 40 fractional bits, computed in decimal
arithmetic, and are summed in the order of byte values. A draw is 64 bits of Threefry; it depends only on the seed, the
number of the sample and the position of the byte in it. The error of a probability is below 2^-40.
"""

from __future__ import annotations

import codecs
import decimal
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import ONE
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.core.rng import fold_in, key, threefry2x32
from nanoegg_mlx.engines import Engine, make_engine
from nanoegg_mlx.errors import InputError, check_settings

_FRACTION = 40
_DRAWS = 256
"""Draws computed at a time."""
_STREAM = 2
"""Key number of the samples; initial weights use 0, perturbations 1 (spec sections 2, 3)."""


@dataclass(frozen=True)
class Sampling:
    """The rule that chooses a byte. Raises InputError, with the value and its range, for a bad value."""

    temperature: float = 1.0
    """1 is the model's distribution; 0 always takes the likeliest byte, the lowest of equal ones."""
    top_k: int = 0
    """Only the k likeliest bytes, the lower ones first among equal ones; 0: all."""
    min_p: float = 0.0
    """Only bytes with at least this share of the likeliest byte's probability. Both are taken at temperature 1,
    independent of `temperature`."""
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (0 <= self.temperature < float("inf"), "a number of at least 0"),
            "top_k": (self.top_k >= 0, "a whole number of at least 0"),
            "min_p": (0 <= self.min_p <= 1, "a number from 0 to 1"),
            "seed": (0 <= self.seed < 2**64, "a whole number from 0 to 18446744073709551615"),
        }
        check_settings(self, rules)


def generate(
    params: Params,
    config: Config,
    prompt: bytes = b"",
    tokens: int | None = None,
    sampling: Sampling | None = None,
    *,
    sample: int = 0,
    engine: Engine | None = None,
) -> Iterator[int]:
    """Yields the bytes that the model writes after a prompt, one at a time.

    The prompt begins a document: the model reads a 0 byte before it. A generated 0 byte ends the document; the bytes
    after it belong to the next one.

    Args:
        params: leaf name -> int8 array.
        config: shapes, and the engine unless `engine` is given.
        prompt: bytes of the vocabulary.
        tokens: number of bytes; None for no limit.
        sampling: rule of choice; by default `Sampling()`.
        sample: number of the sample; each has different draws.
        engine: engine that computes the logits.

    Raises:
        InputError: the prompt has a byte outside the vocabulary.
    """
    sampling = sampling or Sampling()
    if prompt and max(prompt) >= config.vocab_size:
        raise InputError(
            f"The largest byte of the prompt is {max(prompt)}; it must be at most {config.vocab_size - 1}, since "
            f"vocab_size is {config.vocab_size}."
        )
    return _bytes(params, config, prompt, tokens, sampling, sample, engine or make_engine(config))


def _bytes(
    params: Params, config: Config, prompt: bytes, tokens: int | None, sampling: Sampling, sample: int, engine: Engine
) -> Iterator[int]:
    states = np.zeros((1, config.n_layer, config.n_embd), np.int8)
    read = np.frombuffer(b"\0" + prompt, np.uint8)[None]
    draws = _draws(sampling.seed, sample)
    while tokens is None or tokens > 0:
        logits, states = engine.logits(params, read, states)
        token = choose(logits[0, -1], sampling, draws)
        yield token
        read = np.array([[token]], np.uint8)
        tokens = tokens and tokens - 1


def choose(logits: np.ndarray, sampling: Sampling, draws: Iterator[int]) -> int:
    """Returns the next byte.

    Args:
        logits: (V,) int8.
        sampling: rule of choice.
        draws: uniform integers in [0, 2^64); one is taken unless the temperature is 0.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    total = np.cumsum(weights(logits, sampling))
    return int(np.searchsorted(total, next(draws) * int(total[-1]) >> 64, side="right"))


def weights(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Returns weights proportional to the probabilities of the bytes: (V,) int64, 2^40 for the likeliest byte.

    Args:
        logits: (V,) int8.
        sampling: with a temperature above 0.
    """
    below = int(logits.max()) - logits.astype(np.int64)
    weight = power_table(sampling.temperature)[below]
    if sampling.min_p > 0:
        weight = np.where(power_table(1.0)[below] >= sampling.min_p * 2**_FRACTION, weight, 0)
    if 0 < sampling.top_k < len(logits):
        weight[np.argsort(below, kind="stable")[sampling.top_k :]] = 0
    return weight


@lru_cache(maxsize=8)
def power_table(temperature: float) -> np.ndarray:
    """Returns floor(2^40 2^(-i / (16 temperature))) for i in 0..255: (256,) int64.

    Computed in decimal arithmetic with 60 digits: exp2 of math libraries differs between platforms.
    """
    context = decimal.Context(prec=60, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
    divisor = context.multiply(decimal.Decimal(ONE), decimal.Decimal(temperature))
    exponents = [
        context.subtract(decimal.Decimal(_FRACTION), context.divide(decimal.Decimal(i), divisor)) for i in range(256)
    ]
    # Powers below one unit round down to zero. They are not computed: at a low temperature x can be near -10^300.
    powers = [int(context.power(decimal.Decimal(2), x)) if x >= 0 else 0 for x in exponents]
    return np.array(powers, np.int64)


def _draws(seed: int, sample: int) -> Iterator[int]:
    """Yields uniform integers in [0, 2^64) from the key of a sample; draw i is block i of its Threefry."""
    sample_key = fold_in(fold_in(key(seed), _STREAM), sample)
    first = 0
    while True:
        positions = mx.arange(first, first + _DRAWS, dtype=mx.uint32)
        high, low = threefry2x32(sample_key, mx.zeros_like(positions), positions)
        yield from (np.array(high).astype(np.uint64) << np.uint64(32) | np.array(low)).tolist()
        first += _DRAWS


def readable(tokens: Iterable[int]) -> Iterator[str]:
    """Yields safe text for a terminal from a stream of bytes: a piece for each complete character.

    Invalid UTF-8 becomes U+FFFD. Characters that control the terminal or the direction of text, or that are invisible,
    are made visible: control characters as their pictures (0 is ␀), others as <U+202E>; line feeds and tabs stay.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if text := decoder.decode(bytes([token])):
            yield "".join(map(_visible, text))
    if text := decoder.decode(b"", final=True):
        yield text


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or not unicodedata.category(character).startswith(("C", "Zl", "Zp")):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"<U+{code:04X}>"


def text_of(tokens: Iterable[int]) -> str:
    """Returns the whole text that `readable` yields."""
    return "".join(readable(tokens))
