"""Lossless compression: the model's predictions are the frequencies of a range coder (docs/compressed-format.md).

The predictions are integers, so a file decodes on every machine, engine and number of threads. Text is read in blocks,
which bound the memory, and a block is cut into lanes, which one core decodes side by side.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, check_params, model_hash
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure import container

BLOCK = 1 << 22
"""Bytes of text in a block."""
LANE = 1 << 14
"""Bytes of text in a lane. A lane costs about 6 bytes (docs/compression.md): 0.1 % of a compressed lane."""

Progress = Callable[[int], object]
"""Called with the number of bytes of text that were just coded."""


def compress(data: bytes, params: Params, config: Config, lanes: int = 0) -> bytes:
    """The compressed file of `data`.

    Args:
        data: any bytes.
        params: leaf name -> int8 array.
        config: of the model; selects the engine and its threads. The vocabulary must be 256.
        lanes: of every block; 0 for one per 16 KiB.

    Raises:
        InputError: parameters of other shapes than the config's, another vocabulary, or `lanes` out of range.
    """
    target = io.BytesIO()
    compress_stream(io.BytesIO(data), target, params, config, lanes)
    return target.getvalue()


def decompress(data: bytes, params: Params, config: Config, name: str = "The compressed data") -> bytes:
    """The bytes whose compressed file is `data`.

    Args:
        data: a compressed file.
        params, config: the model that compressed it, on any engine.
        name: of the data, for messages.

    Raises:
        InputError: the data are damaged or of another model, version or program; or the model is as in `compress`.
    """
    target = io.BytesIO()
    decompress_stream(io.BytesIO(data), target, params, config, name)
    return target.getvalue()


def compress_stream(
    source: BinaryIO,
    target: BinaryIO,
    params: Params,
    config: Config,
    lanes: int = 0,
    progress: Progress = lambda size: None,
) -> None:
    """Reads `source` to its end and writes its compressed file. Arguments and errors as in `compress`."""
    if not 0 <= lanes <= container.MOST_LANES:
        raise InputError(f"lanes is {lanes}; it must be from 0 to {container.MOST_LANES}.")
    model = _checked_hash(params, config)
    engine = make_engine(config)

    def blocks() -> Iterator[bytes]:
        while text := container.at_most(source, BLOCK):
            yield text
            progress(len(text))

    def lanes_of(size: int) -> int:
        return min(size, lanes or max(1, size // LANE))

    container.write(target, model, blocks(), lanes_of, lambda texts: engine.encode(params, texts))


def decompress_stream(
    source: BinaryIO,
    target: BinaryIO,
    params: Params,
    config: Config,
    name: str,
    progress: Progress = lambda size: None,
) -> None:
    """Reads the compressed file `source` and writes its text. Arguments and errors as in `decompress`.

    The text is written before the hash of the whole was checked: after an InputError the caller must discard it.
    """
    model = _checked_hash(params, config)
    engine = make_engine(config)
    for text in container.read(source, name, model, lambda streams, sizes: engine.decode(params, streams, sizes)):
        target.write(text)
        progress(len(text))


def _checked_hash(params: Params, config: Config) -> bytes:
    """SHA-256 of the model. Raises InputError if the parameters do not fit the config, or it is no model of bytes."""
    check_params(params, config)
    if config.vocab_size != 256:
        raise InputError(f"vocab_size is {config.vocab_size}; it must be 256, so that the model predicts every byte.")
    return model_hash(params, config)
