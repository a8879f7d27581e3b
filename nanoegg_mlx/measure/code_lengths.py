"""Code lengths by document and by position in it, summed for each row of an evaluation: memory is bounded by the rows.

A document is the bytes that follow a 0 byte, up to and including the 0 that ends it: the predictions between two resets
of the state. Rows are read side by side and cut documents. When all rows are read, the pieces on both sides of a cut
are joined, so that they count as one document.

Sums are kept per row, in the order of its tokens, and rows are added exactly (math.fsum) at the end, so that the
result does not depend on the groups or processes that read the rows, to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nanoegg_mlx.core.fixed_point import ONE

_BINS = 34
"""Bin 0: positions that are not known. Bin k > 0: positions 2^(k-2) + 1 to 2^(k-1), that is 1, 2, 3-4, 5-8, ..."""


@dataclass(frozen=True)
class Position:
    """Predictions at some distance from the start of their document."""

    first: int | None
    """1 for a document's first byte; None for the bytes before a row's first 0 byte, where a row cuts a document: they
    are predicted from a zero state in the middle of a document."""
    last: int | None
    bytes: int
    bits_per_byte: float


class CodeLengths:
    """Sums of the code lengths of each row of a text.

    Every attribute is an array with one entry a row, so that the rows of several processes can be concatenated.
    """

    def __init__(self, rows: int) -> None:
        self.scores = np.zeros(rows, np.int64)
        """Integer scores in sixteenths of a bit."""
        self.tokens = np.zeros(rows, np.int64)
        self.bits = np.zeros(rows)
        self.started = np.zeros(rows, bool)
        """Whether the row has read a 0 byte."""
        self.before = np.zeros((rows, 2))
        """(bits, bytes) of the piece before the first 0 byte, after that byte was read."""
        self.open = np.zeros((rows, 2))
        """(bits, bytes) of the last piece, which may continue."""
        self.sums = np.zeros((rows, 6))
        """Over documents that lie within the row: 1, bits, bytes, bits^2, bits * bytes, bytes^2."""
        self.position_bits = np.zeros((rows, _BINS))
        self.position_bytes = np.zeros((rows, _BINS), np.int64)

    def add(self, inputs: np.ndarray, scores: np.ndarray, code_lengths: np.ndarray) -> None:
        """Adds the next tokens of every row.

        Args:
            inputs: (rows, W) uint8, the bytes read.
            scores: (rows,) integers, their sums in sixteenths of a bit.
            code_lengths: (rows, W) float64, bits of the bytes that followed.
        """
        self.scores += scores
        self.tokens += inputs.shape[1]
        for column in code_lengths.T:
            self.bits += column
        starts = inputs == 0
        self._add_positions(starts, code_lengths)
        self._add_pieces(starts, code_lengths)

    def _add_positions(self, starts: np.ndarray, code_lengths: np.ndarray) -> None:
        rows, width = starts.shape
        columns = np.arange(width)
        start = np.maximum.accumulate(np.where(starts, columns, -1), axis=1)
        # The last document of the window before continues in this one.
        before = np.where(start < 0, columns + self.open[:, 1:].astype(np.int64), columns - start)
        bins = np.frexp(before)[1] + 1
        bins[(start < 0) & ~self.started[:, None]] = 0
        cells = (np.arange(rows)[:, None] * _BINS + np.minimum(bins, _BINS - 1)).ravel()
        shape = (rows, _BINS)
        self.position_bits += np.bincount(cells, code_lengths.ravel(), rows * _BINS).reshape(shape)
        self.position_bytes += np.bincount(cells, minlength=rows * _BINS).reshape(shape)

    def _add_pieces(self, starts: np.ndarray, code_lengths: np.ndarray) -> None:
        cuts = starts.copy()
        cuts[:, 0] = True
        number = np.cumsum(cuts) - 1
        pieces = np.stack([np.bincount(number, code_lengths.ravel()), np.bincount(number)], axis=1)
        rows = np.nonzero(cuts)[0]
        begins = starts[cuts]
        self.open[rows[~begins]] += pieces[~begins]
        if not begins.any():
            return
        rows, pieces = rows[begins], pieces[begins]
        change = rows[1:] != rows[:-1]
        first, last = np.append(True, change), np.append(change, True)
        # A row's first 0 byte in the window ends its open piece, and each further one the piece before it.
        ended = rows[first]
        earlier = self.started[ended]
        self._close(ended[earlier], self.open[ended[earlier]])
        self.before[ended[~earlier]] = self.open[ended[~earlier]]
        self.started[ended] = True
        self._close(rows[~last], pieces[~last])
        self.open[rows[last]] = pieces[last]

    def _close(self, rows: np.ndarray, documents: np.ndarray) -> None:
        np.add.at(self.sums, rows, _moments(documents))

    def bits_per_byte(self) -> float:
        """The reference's figure, from integer scores (spec section 8)."""
        return -int(self.scores.sum()) / (ONE * int(self.tokens.sum()))

    def exact_bits_per_byte(self) -> float:
        """The normalised code length."""
        return math.fsum(self.bits) / int(self.tokens.sum())

    def standard_error(self) -> tuple[int, float | None]:
        """The number of documents, and the standard error of `exact_bits_per_byte` over them.

        Documents are treated as a random sample, with b_i bits and n_i bytes each. The figure is the ratio
        R = sum b_i / sum n_i, and with the residuals e_i = b_i - R n_i (Cochran, Sampling Techniques, 1977, section
        2.11; no correction for a finite population)

            SE(R) = sqrt(k / (k - 1) * sum e_i^2) / sum n_i,    k documents.

        It is None for fewer than two documents.
        """
        whole = [self.sums, _moments(self._cut_documents())]
        k, b, n, bb, bn, nn = (math.fsum(column) for column in np.concatenate(whole).T)
        if k < 2:
            return int(k), None
        ratio = b / n
        squares = max(bb - 2 * ratio * bn + ratio * ratio * nn, 0.0)
        return int(k), math.sqrt(k / (k - 1) * squares) / n

    def _cut_documents(self) -> np.ndarray:
        """(bits, bytes) of the documents that span rows, or lie at the end or the beginning of the text."""
        documents = []
        current = np.zeros(2)
        for row in range(len(self.started)):
            if self.started[row]:
                documents.append(current + self.before[row])
                current = self.open[row]
            else:
                current = current + self.open[row]
        documents.append(current)
        return np.array([document for document in documents if document[1]]).reshape(-1, 2)

    def by_position(self) -> tuple[Position, ...]:
        """Bits per byte at positions 1, 2, 3-4, 5-8, ... after a 0 byte, then before a row's first one; empty bins are
        left out."""
        found = []
        for bin in [*range(1, _BINS), 0]:
            count = int(self.position_bytes[:, bin].sum())
            if count:
                last = 1 << bin - 1 if bin else None
                first = last and last // 2 + 1
                found.append(Position(first, last, count, math.fsum(self.position_bits[:, bin]) / count))
        return tuple(found)


def _moments(documents: np.ndarray) -> np.ndarray:
    """1, b, n, b^2, b n, n^2 of each document's (bits b, bytes n): (k, 2) -> (k, 6)."""
    b, n = documents[:, 0], documents[:, 1]
    return np.stack([np.ones(len(b)), b, n, b * b, b * n, n * n], axis=1)
