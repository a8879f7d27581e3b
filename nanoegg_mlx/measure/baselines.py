"""Baselines for a model's bits per byte: entropies and compressed sizes of a text.

There are two kinds of n-gram figures. The empirical entropy is fitted to the same bytes that it measures: no code that
must learn these bytes reaches it, and a trigram's is far too low on a short text. `NGram` counts on another text
(`nanoegg baseline trigram TEXT --train CACHE`), so its figure is comparable with a model's. gzip and xz learn the text
while they compress it.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from nanoegg_mlx.errors import InputError

_PIECE = 1 << 20
"""Tokens processed at a time: bounds the memory beside the counters."""
_CONTEXTS = 1 << 10
"""Contexts whose counters are summed at a time."""


def unigram(tokens: np.ndarray) -> float:
    """Returns the empirical entropy of the bytes of `tokens` (size,) uint8, in bits per byte."""
    return empirical_entropy(tokens, 1)


def bigram(tokens: np.ndarray) -> float:
    """Returns the empirical entropy of a byte of `tokens` (size,) uint8 given the byte before it, in bits per byte."""
    return empirical_entropy(tokens, 2)


def trigram(tokens: np.ndarray) -> float:
    """Returns the empirical entropy of a byte of `tokens` (size,) uint8 given the two before it, in bits per byte."""
    return empirical_entropy(tokens, 3)


def empirical_entropy(tokens: np.ndarray, order: int) -> float:
    """Returns the entropy of a byte given the `order` - 1 before it, from the n-grams of `tokens` (size,) uint8.

    In bits per byte. Needs the memory of `count_ngrams`. Raises InputError for fewer than `order` tokens.
    """
    if len(tokens) < order:
        raise InputError(f"The number of tokens is {len(tokens)}; for {order}-grams it must be at least {order}.")
    counts = count_ngrams(tokens, order).reshape(-1, 256)
    bits = []
    for first in range(0, len(counts), _CONTEXTS):
        part = counts[first : first + _CONTEXTS]
        bits.append(_n_log_n(part.sum(axis=1, dtype=np.int64)) - _n_log_n(part))
    return math.fsum(bits) / (len(tokens) - order + 1)


def _n_log_n(counts: np.ndarray) -> float:
    """Returns the sum of n log2 n over the counts; a count of 0 or 1 contributes 0."""
    counts = counts[counts > 1].astype(np.float64)
    return float((counts * np.log2(counts)).sum())


def count_ngrams(tokens: np.ndarray, order: int) -> np.ndarray:
    """Returns the count of each n-gram, (256^order,); the digits of the index to the base 256 are the n-gram's bytes.

    Trigrams need 64 MiB (2^24 uint32), or 128 MiB (int64) for a text of 2^32 bytes or more; the others need little.
    """
    counts = np.zeros(256**order, np.uint32 if order > 2 and len(tokens) < 1 << 32 else np.int64)
    one = counts.dtype.type(1)
    for index in _indices(tokens, order):
        np.add.at(counts, index, one)
    return counts


def _indices(tokens: np.ndarray, order: int) -> Iterator[np.ndarray]:
    """Yields the indices of all n-grams of `tokens`, piece by piece."""
    for first in range(0, len(tokens) - order + 1, _PIECE):
        piece = tokens[first : first + _PIECE + order - 1].astype(np.intp)
        count = len(piece) - order + 1
        index = piece[:count]
        for place in range(1, order):
            index = index << 8 | piece[place : place + count]
        yield index


class NGram:
    """A byte model of order 1, 2 or 3: counts one text, measures others.

    Interpolated Witten-Bell smoothing (method C of Witten and Bell, 1991). For a context that occurs N times, followed
    by T different bytes, P(b) = (count(b) + T P'(b)) / (N + T). P' is the probability of the next lower order; below
    order 1 it is 1/256. For a context that does not occur, P(b) = P'(b). Contexts cross the boundaries of documents: a
    0 byte is treated like any other.
    """

    def __init__(self, tokens: np.ndarray, order: int) -> None:
        """Counts the n-grams of `tokens` (size,) uint8. Needs the memory of `count_ngrams`."""
        self.order = order
        self._tables = [_Table(tokens, n) for n in range(1, order + 1)]
        self._lower = [np.full(1, 1 / 256)]
        for n in range(1, order):
            self._lower.append(self._probability(n, np.arange(256**n)))

    def _probability(self, n: int, index: np.ndarray) -> np.ndarray:
        """Returns the probability of the last byte of each n-gram given its other bytes."""
        table, lower = self._tables[n - 1], self._lower[n - 1]
        seen, distinct = table.seen[index >> 8], table.distinct[index >> 8]
        below = lower[index & len(lower) - 1]
        return np.where(seen > 0, (table.counts[index] + distinct * below) / np.maximum(seen + distinct, 1), below)

    def probabilities(self, context: bytes) -> np.ndarray:
        """Returns the probability of each byte after a context of `order` - 1 bytes: (256,) float64."""
        return self._probability(self.order, (int.from_bytes(context, "big") << 8) + np.arange(256))

    def bits_per_byte(self, tokens: np.ndarray) -> float:
        """Returns the code length of `tokens` (size,) uint8, per byte. The first bytes have shorter contexts."""
        bits = []
        for n in range(1, min(self.order - 1, len(tokens)) + 1):
            bits.append(-np.log2(self._lower[n][int.from_bytes(tokens[:n].tobytes(), "big")]))
        for index in _indices(tokens, self.order):
            bits.append(-np.log2(self._probability(self.order, index)).sum())
        return math.fsum(bits) / len(tokens)


class _Table:
    """Counts of the n-grams of a text; occurrences of each context and the number of different bytes after it."""

    def __init__(self, tokens: np.ndarray, n: int) -> None:
        self.counts = count_ngrams(tokens, n)
        after = self.counts.reshape(-1, 256)
        self.seen = after.sum(axis=1, dtype=np.int64)
        self.distinct = np.count_nonzero(after, axis=1)


def gzip(tokens: np.ndarray) -> float:
    """Returns the bits per byte of `tokens` (size,) uint8 after gzip -9, with the 18 bytes of its container."""
    compressor = zlib.compressobj(9, wbits=31)
    size = sum(len(compressor.compress(piece.tobytes())) for piece in _pieces(tokens))
    return 8 * (size + len(compressor.flush())) / len(tokens)


def xz(tokens: np.ndarray) -> float:
    """Returns the bits per byte of `tokens` (size,) uint8 after xz -6."""
    compressor = lzma.LZMACompressor()
    size = sum(len(compressor.compress(piece.tobytes())) for piece in _pieces(tokens))
    return 8 * (size + len(compressor.flush())) / len(tokens)


def _pieces(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Yields consecutive views of `tokens`: bounds the memory of the compressors."""
    return (tokens[start : start + _PIECE] for start in range(0, len(tokens), _PIECE))


ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}
BASELINES: dict[str, Callable[[np.ndarray], float]] = {
    "unigram": unigram,
    "bigram": bigram,
    "trigram": trigram,
    "gzip": gzip,
    "xz": xz,
}
"""Figures that need no other text: name -> function of the tokens, in bits per byte."""
