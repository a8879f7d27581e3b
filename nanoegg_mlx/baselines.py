"""What the bytes themselves say: entropies and compressed sizes, the yardsticks beside a model's bits per byte."""

from __future__ import annotations

import lzma
import zlib

import numpy as np

_PIECE = 1 << 24


def unigram(tokens: np.ndarray) -> float:
    """Entropy of the byte distribution of `tokens` (size,) uint8 itself, in bits per byte."""
    counts = sum((np.bincount(piece, minlength=256) for piece in _pieces(tokens)), np.zeros(256, np.int64))
    return _code_length(counts) / len(tokens)


def bigram(tokens: np.ndarray) -> float:
    """Entropy of a byte given the one before, from the pairs in `tokens` (size,) uint8 itself, bits per byte.

    Raises ValueError for fewer than two tokens.
    """
    if len(tokens) < 2:
        raise ValueError(f"A bigram entropy needs at least 2 tokens, not {len(tokens)}.")
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, len(tokens) - 1, _PIECE):
        before = tokens[start : start + _PIECE + 1].astype(np.int64)
        counts += np.bincount(before[:-1] << 8 | before[1:], minlength=1 << 16)
    return sum(_code_length(row) for row in counts.reshape(256, 256)) / (len(tokens) - 1)


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


BASELINES = {"unigram": unigram, "bigram": bigram, "gzip": gzip, "xz": xz}


def _pieces(tokens: np.ndarray) -> list[np.ndarray]:
    """Views that bound the memory that each figure takes."""
    return [tokens[start : start + _PIECE] for start in range(0, len(tokens), _PIECE)]


def _code_length(counts: np.ndarray) -> float:
    """Bits that an ideal code fitted to `counts` needs for all that was counted."""
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())
