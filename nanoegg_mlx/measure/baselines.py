"""What the bytes themselves say: entropies and compressed sizes, the yardsticks beside a model's bits per byte.

An n-gram figure comes in two kinds. The empirical entropy is fitted to the very bytes that are measured: no code that
has to learn them gets there, and on a short text a trigram's is absurdly low. The honest one counts on another text
(`NGram`, `nanoegg baseline trigram TEXT --train CACHE`) and can be held beside a model. gzip and xz learn as they go.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store.tokens import load_tokens, read_text

_PIECE = 1 << 20
"""Tokens that are worked on at a time, which bounds memory beside the counters."""
_CONTEXTS = 1 << 10
"""Contexts whose counters are summed at a time."""


def unigram(tokens: np.ndarray) -> float:
    """Entropy of the byte distribution of `tokens` (size,) uint8 itself, in bits per byte."""
    return empirical_entropy(tokens, 1)


def bigram(tokens: np.ndarray) -> float:
    """Entropy of a byte given the one before, from the pairs in `tokens` (size,) uint8 itself, bits per byte."""
    return empirical_entropy(tokens, 2)


def trigram(tokens: np.ndarray) -> float:
    """Entropy of a byte given the two before, from the triples in `tokens` (size,) uint8 itself, bits per byte."""
    return empirical_entropy(tokens, 3)


def empirical_entropy(tokens: np.ndarray, order: int) -> float:
    """Entropy of a byte given the `order` - 1 before it, from the n-grams in `tokens` (size,) uint8 itself.

    Memory is that of `count_ngrams`. Raises InputError for fewer than `order` tokens.
    """
    if len(tokens) < order:
        raise InputError(f"The entropy of {order}-grams needs at least {order} tokens, not {len(tokens)}.")
    counts = count_ngrams(tokens, order).reshape(-1, 256)
    bits = []
    for first in range(0, len(counts), _CONTEXTS):
        part = counts[first : first + _CONTEXTS]
        bits.append(_n_log_n(part.sum(axis=1, dtype=np.int64)) - _n_log_n(part))
    return math.fsum(bits) / (len(tokens) - order + 1)


def _n_log_n(counts: np.ndarray) -> float:
    """sum n log2 n."""
    counts = counts[counts > 1].astype(np.float64)
    return float((counts * np.log2(counts)).sum())


def count_ngrams(tokens: np.ndarray, order: int) -> np.ndarray:
    """How often each n-gram occurs: (256^order,), an n-gram's bytes being its index's digits to the base 256.

    Trigrams take 64 MiB (2^24 uint32), and 128 MiB (int64) of a text with 2^32 bytes or more; the others little.
    """
    counts = np.zeros(256**order, np.uint32 if order > 2 and len(tokens) < 1 << 32 else np.int64)
    one = counts.dtype.type(1)
    for index in _indices(tokens, order):
        np.add.at(counts, index, one)
    return counts


def _indices(tokens: np.ndarray, order: int) -> Iterator[np.ndarray]:
    """The index of every n-gram of `tokens`, in pieces."""
    for first in range(0, len(tokens) - order + 1, _PIECE):
        piece = tokens[first : first + _PIECE + order - 1].astype(np.intp)
        count = len(piece) - order + 1
        index = piece[:count]
        for place in range(1, order):
            index = index << 8 | piece[place : place + count]
        yield index


class NGram:
    """A byte model of order 1, 2 or 3, counted on one text to measure others.

    Interpolated Witten-Bell smoothing (method C of Witten and Bell, 1991): after a context that was seen N times with T
    different bytes behind it, P(b) = (count(b) + T P'(b)) / (N + T), where P' is the next lower order's probability and
    at the bottom 1/256; after a context that was never seen it is P'. Contexts run across document boundaries, the 0
    byte being a byte like the others.
    """

    def __init__(self, tokens: np.ndarray, order: int) -> None:
        """Counts `tokens`, (size,) uint8. Memory is that of `count_ngrams`."""
        self.order = order
        self._tables = [_Table(tokens, n) for n in range(1, order + 1)]
        self._lower = [np.full(1, 1 / 256)]
        for n in range(1, order):
            self._lower.append(self._probability(n, np.arange(256**n)))

    def _probability(self, n: int, index: np.ndarray) -> np.ndarray:
        """Of the last byte of n-grams after their others."""
        table, lower = self._tables[n - 1], self._lower[n - 1]
        seen, distinct = table.seen[index >> 8], table.distinct[index >> 8]
        below = lower[index & len(lower) - 1]
        return np.where(seen > 0, (table.counts[index] + distinct * below) / np.maximum(seen + distinct, 1), below)

    def probabilities(self, context: bytes) -> np.ndarray:
        """Of each byte after `order` - 1 bytes of context: (256,) float64."""
        return self._probability(self.order, (int.from_bytes(context, "big") << 8) + np.arange(256))

    def bits_per_byte(self, tokens: np.ndarray) -> float:
        """The code length of all of `tokens` (size,) uint8, per byte; the first ones have shorter contexts."""
        bits = []
        for n in range(1, min(self.order - 1, len(tokens)) + 1):
            bits.append(-np.log2(self._lower[n][int.from_bytes(tokens[:n].tobytes(), "big")]))
        for index in _indices(tokens, self.order):
            bits.append(-np.log2(self._probability(self.order, index)).sum())
        return math.fsum(bits) / len(tokens)


class _Table:
    """The n-grams of a text: counters, and how often each context was seen and how many different bytes followed."""

    def __init__(self, tokens: np.ndarray, n: int) -> None:
        self.counts = count_ngrams(tokens, n)
        after = self.counts.reshape(-1, 256)
        self.seen = after.sum(axis=1, dtype=np.int64)
        self.distinct = np.count_nonzero(after, axis=1)


def gzip(tokens: np.ndarray) -> float:
    """Bits per byte of `tokens` (size,) uint8 after gzip -9 (its container's 18 bytes included)."""
    compressor = zlib.compressobj(9, wbits=31)
    size = sum(len(compressor.compress(piece.tobytes())) for piece in _pieces(tokens))
    return 8 * (size + len(compressor.flush())) / len(tokens)


def xz(tokens: np.ndarray) -> float:
    """Bits per byte of `tokens` (size,) uint8 after xz -6."""
    compressor = lzma.LZMACompressor()
    size = sum(len(compressor.compress(piece.tobytes())) for piece in _pieces(tokens))
    return 8 * (size + len(compressor.flush())) / len(tokens)


def _pieces(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Views that bound the memory that each figure takes."""
    return (tokens[start : start + _PIECE] for start in range(0, len(tokens), _PIECE))


ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}
BASELINES: dict[str, Callable[[np.ndarray], float]] = {
    "unigram": unigram,
    "bigram": bigram,
    "trigram": trigram,
    "gzip": gzip,
    "xz": xz,
}
"""Figures of a text by itself."""


def add_arguments(kinds: Any) -> None:
    """Adds `nanoegg baseline unigram`, `bigram`, ... to the command's subparsers."""
    for name in BASELINES:
        what = f"bits per byte of a text by {name}"
        parser: argparse.ArgumentParser = kinds.add_parser(name, help=what)
        parser.add_argument("text", help="token cache (.npy) or text file")
        if name not in ORDERS:
            parser.description = f"Measures a text by {name} -{9 if name == 'gzip' else 6}, which learns it as it goes."
        else:
            parser.description = (
                f"Measures a text by {name}s. With --train those of another text, smoothed (interpolated Witten-Bell), "
                "are used: that can be held beside a model. Without, the figure is the empirical entropy, fitted to "
                "the very bytes that it measures."
            )
            parser.add_argument("--train", metavar="CACHE", help="token cache to count on")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(command=partial(run, name))


def run(name: str, options: argparse.Namespace) -> int:
    """Measures and prints; returns the exit code."""
    tokens = _not_empty(read_text(options.text), options.text)
    train = getattr(options, "train", None)
    if train:
        counted = _not_empty(load_tokens(train), train)
        figure = NGram(counted, ORDERS[name]).bits_per_byte(tokens)
        how = f"counted on the {len(counted):,} bytes of {train}, Witten-Bell smoothing"
    else:
        figure = BASELINES[name](tokens)
        how = "empirical entropy, fitted to these very bytes" if name in ORDERS else "compressed size"
    if options.json:
        about = {"baseline": name, "text": options.text, "tokens": len(tokens), "train": train, "bits_per_byte": figure}
        print(json.dumps(about))
    else:
        print(f"{options.text}: {len(tokens):,} bytes\n  {name:<10} {figure:8.4f} bits per byte   {how}")
    return 0


def _not_empty(tokens: np.ndarray, path: str) -> np.ndarray:
    if not len(tokens):
        raise InputError(f"The token cache {path} holds no tokens; it has to have at least one.")
    return tokens
