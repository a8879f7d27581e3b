"""Text from a model, byte by byte, the same for a seed on every machine and engine.

Logits are integers and a byte's probability is proportional to 2^(l / (16 temperature)) (spec section 5), so everything
after them is integer too: weights come from a table of integers with 40 fractional bits, which is made in decimal
arithmetic, are added up in the order of byte values, and a draw is 64 bits of Threefry that depend on nothing but the
seed, the sample's number and the byte's place in it. A probability is off by less than 2^-40.
"""

from __future__ import annotations

import argparse
import codecs
import decimal
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, takewhile
from pathlib import Path

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import ONE
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.core.rng import fold_in, key, threefry2x32
from nanoegg_mlx.engines import Engine, make_engine
from nanoegg_mlx.errors import InputError, check_settings
from nanoegg_mlx.store import checkpoint

_FRACTION = 40
_DRAWS = 256
"""Draws made at a time."""
_STREAM = 2
"""Number of the key that samples come from; 0 is the initial weights', 1 the perturbations' (spec sections 2, 3)."""


@dataclass(frozen=True)
class Sampling:
    """How a byte is chosen. Raises InputError, naming the value and its range, for a bad one."""

    temperature: float = 1.0
    """1 is the model's own distribution; 0 always takes the likeliest byte, the lowest of equal ones."""
    top_k: int = 0
    """Only the k likeliest bytes, the lower ones first among equal ones; 0: all."""
    min_p: float = 0.0
    """Only bytes with at least this share of the likeliest one's probability, at temperature 1 whatever
    `temperature` is."""
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
    """The bytes that the model goes on with after a prompt, one at a time.

    The prompt begins a document: the model reads a 0 byte before it. A 0 byte that is generated ends the document,
    and what follows it is the next one.

    Args:
        params: leaf name -> int8 array.
        config: shapes, and the engine if none is given.
        prompt: bytes of the vocabulary.
        tokens: how many bytes; None for no end.
        sampling: how they are chosen; the defaults if not given.
        sample: number of the sample, each of which has draws of its own.
        engine: that runs the model.

    Raises:
        InputError: the prompt has a byte outside the vocabulary.
    """
    sampling = sampling or Sampling()
    if prompt and max(prompt) >= config.vocab_size:
        raise InputError(
            f"The prompt holds the byte {max(prompt)}, but vocab_size = {config.vocab_size} allows 0 to "
            f"{config.vocab_size - 1}."
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
    """The next byte.

    Args:
        logits: (V,) int8.
        sampling: how to choose.
        draws: uniform integers in [0, 2^64); one is taken unless the temperature is 0.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    total = np.cumsum(weights(logits, sampling))
    return int(np.searchsorted(total, next(draws) * int(total[-1]) >> 64, side="right"))


def weights(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """What each byte's probability is proportional to: (V,) int64, 2^40 for the likeliest.

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
    """floor(2^40 2^(-i / (16 temperature))) for i in 0..255: (256,) int64.

    In decimal arithmetic of 60 digits, which is the same everywhere; libraries' exp2 is not.
    """
    context = decimal.Context(prec=60, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
    divisor = context.multiply(decimal.Decimal(ONE), decimal.Decimal(temperature))
    exponents = [
        context.subtract(decimal.Decimal(_FRACTION), context.divide(decimal.Decimal(i), divisor)) for i in range(256)
    ]
    # What is below one unit is zero, however far below: 2^-(10^300) need not be worked out.
    powers = [int(context.power(decimal.Decimal(2), x)) if x >= 0 else 0 for x in exponents]
    return np.array(powers, np.int64)


def _draws(seed: int, sample: int) -> Iterator[int]:
    """Uniform integers in [0, 2^64), from the key that belongs to a sample; draw i is block i of its Threefry."""
    sample_key = fold_in(fold_in(key(seed), _STREAM), sample)
    first = 0
    while True:
        positions = mx.arange(first, first + _DRAWS, dtype=mx.uint32)
        high, low = threefry2x32(sample_key, mx.zeros_like(positions), positions)
        yield from (np.array(high).astype(np.uint64) << np.uint64(32) | np.array(low)).tolist()
        first += _DRAWS


def readable(tokens: Iterable[int]) -> Iterator[str]:
    """Text of bytes as they come, fit for a terminal: a piece of text for each character that is complete.

    Invalid UTF-8 becomes U+FFFD. What would control the terminal or the direction of text, or would not show at all,
    is made visible: control characters as their pictures (0 is ␀), others as <U+202E>; line feeds and tabs stay.
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
    """All of them, as `readable` shows them."""
    return "".join(readable(tokens))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg sample`."""
    parser.description = (
        "Writes text from a checkpoint as it is generated. A sample is a document that begins with the prompt; it ends "
        "where the model ends it (a 0 byte) or after --tokens bytes. Invalid UTF-8 and control characters are made "
        "visible; --raw gives the bytes themselves. The same seed gives the same bytes on every machine."
    )
    parser.add_argument("checkpoint", help="a run's folder (its newest checkpoint) or one checkpoint's")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the document begins with (default: nothing)")
    parser.add_argument("--tokens", type=int, default=500, metavar="N", help="bytes at most (default: 500)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="0: always the likeliest byte (default: 1)"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K likeliest bytes (default: all)")
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="only bytes at least P times as likely as the likeliest"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="samples, each with draws of its own")
    parser.add_argument(
        "--ignore-end", action="store_true", help="go on with the next document where one ends; its 0 byte shows as ␀"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="the generated bytes as they are, without the prompt; a 0 byte between samples",
    )
    parser.add_argument("--engine", choices=("auto", "mlx", "cpu"), default="auto", help="(default: auto)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Writes the samples to standard output; returns the exit code."""
    sampling = Sampling(options.temperature, options.top_k, options.min_p, options.seed)
    for name, low in (("tokens", 0), ("count", 1)):
        if getattr(options, name) < low:
            raise InputError(f"--{name} {getattr(options, name)} is not allowed; it has to be at least {low}.")
    opened = checkpoint.load(Path(options.checkpoint))
    config = opened.config.replace(engine=options.engine)
    engine = make_engine(config)
    prompt = os.fsencode(options.prompt)
    try:
        for sample in range(options.count):
            tokens = generate(opened.params, config, prompt, options.tokens, sampling, sample=sample, engine=engine)
            if not options.ignore_end:
                tokens = takewhile(bool, tokens)
            if options.raw:
                _write_raw(tokens, sample)
            else:
                _write_text(prompt, tokens, f"[sample {sample + 1} of {options.count}]" if options.count > 1 else "")
    except BrokenPipeError:  # the reader has seen enough, as in `nanoegg sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _write_raw(tokens: Iterable[int], sample: int) -> None:
    if sample:
        sys.stdout.buffer.write(b"\0")
    for token in tokens:
        sys.stdout.buffer.write(bytes([token]))
        sys.stdout.buffer.flush()


def _write_text(prompt: bytes, tokens: Iterable[int], title: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    if title:
        print(title)
    for piece in readable(chain(prompt, tokens)):
        print(piece.encode(encoding, "replace").decode(encoding), end="", flush=True)
    print(flush=True)
