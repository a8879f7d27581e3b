"""A single text file, split by position: its end goes to valid and test, the rest to train.

Notable: the parts are the whole document, in order: train, valid, test. A cut is at the beginning of a line near the
asked position, otherwise at the beginning of a word, otherwise between two characters. Each part is a document.
"""

import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from data_prep import streams
from data_prep.formats import encode_text, input_errors
from data_prep.streams import Input
from data_prep.tokens import CHUNK_BYTES, Encoded
from nanoegg_mlx.errors import InputError

if TYPE_CHECKING:
    from data_prep.sources import Fractions, Source

SPLIT = "by position"
"""Marks the request of a document that was split so."""

_REACH = 1 << 16
"""Bytes on either side of the asked position in which a boundary is looked for."""


def read(content: Input, fractions: "Fractions", source: "Source") -> Generator[tuple[str, Encoded], None, None]:
    """Yields (split, tokens) of the parts of one text file, and remarks on the split."""
    source.reading(content.name)
    content = replace(content, remark=source.remarks.append)
    with input_errors(content.name), _plain(content) as (file, size):
        shares = {"train": 1 - fractions.valid - fractions.test, "valid": fractions.valid, "test": fractions.test}
        shares = {split: share for split, share in shares.items() if share > 0}
        cuts = _cuts(file, size, list(shares.values()), content.name)
        for split, start, stop in zip(shares, cuts[:-1], cuts[1:], strict=True):
            for piece in encode_text(_range(file, start, stop), content.name, start):
                yield split, piece
        if len(shares) > 1:
            parts = ", ".join(
                f"{split} has bytes {start:,} to {stop - 1:,}"
                for split, start, stop in zip(shares, cuts[:-1], cuts[1:], strict=True)
            )
            source.remarks.append(f"{content.name} is a single document, split by position: {parts}.")


@contextmanager
def _plain(content: Input) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a file for reading at any position, decompressed. Yields it and its size in bytes."""
    if content.codec is None:
        with open(content.path, "rb") as file:
            yield file, streams.file_size(content.path)
        return
    with tempfile.TemporaryFile() as copy:
        for piece in streams.pieces(content, CHUNK_BYTES):
            copy.write(piece)
        size = copy.tell()
        yield copy, size


def _range(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    file.seek(start)
    while start < stop and (piece := file.read(min(CHUNK_BYTES, stop - start))):
        start += len(piece)
        yield piece


def _cuts(file: BinaryIO, size: int, shares: list[float], name: str) -> list[int]:
    """Returns where the parts begin, and the size. Raises InputError when a part would have no character."""
    cuts, position = [0], 0.0
    for number, share in enumerate(shares[:-1]):
        position += share
        low, high = cuts[-1] + 1, size - (len(shares) - number - 1)
        target = min(max(round(position * size), low), high)
        # Neither side may lose more than half of what it was to have.
        near = min(share, shares[number + 1]) * size / 2
        half = range(max(low, (cuts[-1] + target) // 2), min(high, (target + size) // 2) + 1)
        cut = _boundary(file, target, half, near)
        if cut is None:
            cut = _boundary(file, target, range(low, high + 1), near)
        if cut is None:
            raise InputError(
                f"{name} has {size} bytes; it must have more to be split into {len(shares)} parts (--valid-fraction 0 "
                "--test-fraction 0 keeps it whole)."
            )
        cuts.append(cut)
    return [*cuts, size]


def _boundary(file: BinaryIO, target: int, allowed: range, near: float) -> int | None:
    """Returns the best allowed place for a cut, None if there is none.

    The nearest beginning of a line, at most `near` bytes away; otherwise of a word; otherwise of a character.
    """
    start = max(target - _REACH, allowed.start - 1)
    file.seek(start)
    text = file.read(max(min(target + _REACH, allowed.stop) - start, 0))
    for pattern, reach in ((rb"\n", near), (rb"\s", _REACH), (rb"(?s:.)(?![\x80-\xbf])", _REACH)):
        ends = (start + match.end() for match in re.finditer(pattern, text))
        found = [end for end in ends if end in allowed and abs(end - target) <= reach]
        if found:
            return min(found, key=lambda end: abs(end - target))
    return None
