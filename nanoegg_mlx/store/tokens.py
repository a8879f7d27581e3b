"""Token caches -> lanes -> batches (spec section 6): lanes are views of the memory-mapped cache, nothing is copied."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.errors import InputError


def load_tokens(path: str | Path) -> np.ndarray:
    """Opens a token cache, memory-mapped.

    Returns:
        (size,) uint8, read-only.

    Raises:
        InputError: no such file, not a .npy file, truncated, not 1-D or not uint8.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        tried = "" if Path(path).is_absolute() else f" ({Path(path).absolute()})"
        raise InputError(f"The token cache {path}{tried} does not exist; `nanoegg prepare` makes one.") from error
    except OSError as error:
        raise InputError(f"The token cache {path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        # NumPy parses the header as Python source, which raises errors of many classes.
        reason = str(error).partition("\n")[0][:120]
        raise InputError(
            f"The token cache {path} is truncated or not a .npy file ({reason}); it must be a 1-D uint8 .npy file."
        ) from error
    if not isinstance(tokens, np.ndarray):
        raise InputError(f"The token cache {path} is a .npz archive; it must be a single 1-D uint8 .npy file.")
    return checked_tokens(tokens, str(path))


def read_text(path: str | Path) -> np.ndarray:
    """The tokens of a cache (.npy), or of a text file as one document: (size,) uint8.

    Raises:
        InputError: the file cannot be read or is empty, or the cache is no 1-D uint8 array.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return load_tokens(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"The text file {path} cannot be read: {error.strerror}.") from error
    if not content:
        raise InputError(f"The text file {path} is empty; it must have at least one byte.")
    return np.frombuffer(b"\0" + content, np.uint8)


def checked_tokens(tokens: np.ndarray, what: str = "The token array") -> np.ndarray:
    """Returns the tokens if they are a 1-D uint8 array; raises InputError otherwise."""
    tokens = np.asarray(tokens)
    if tokens.dtype != np.uint8 or tokens.ndim != 1:
        raise InputError(f"{what} is {tokens.ndim}-D {tokens.dtype} of shape {tokens.shape}; it must be 1-D uint8.")
    return tokens


def check_vocabulary(tokens: np.ndarray, vocab_size: int) -> None:
    """Raises InputError if a byte is outside [0, vocab_size)."""
    if vocab_size == 256:
        return
    for start in range(0, len(tokens), 1 << 24):
        largest = int(tokens[start : start + (1 << 24)].max())
        if largest >= vocab_size:
            raise InputError(
                f"A token is {largest}; it must be from 0 to {vocab_size - 1}, since vocab_size is {vocab_size}."
            )


def bytes_read(inputs: np.ndarray, vocab_size: int) -> np.ndarray:
    """Whether each row of `inputs`, (rows, T) uint8, has the byte: (rows, vocab_size) bool."""
    reads = np.zeros((len(inputs), vocab_size), bool)
    reads[np.arange(len(inputs))[:, None], inputs] = True
    return reads


def fingerprint(tokens: np.ndarray) -> dict[str, int | str]:
    """The identity of a cache: the number of `tokens` (size,) uint8, and their SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    for start in range(0, len(tokens), 1 << 24):
        digest.update(np.ascontiguousarray(tokens[start : start + (1 << 24)]).data)
    return {"tokens": len(tokens), "sha256": digest.hexdigest()}


class Lanes:
    """The training text cut into S lanes that are read side by side, T tokens an epoch."""

    def __init__(self, tokens: np.ndarray, config: Config) -> None:
        """Args: tokens, (size,) uint8. Raises InputError if the corpus is too short for one segment a lane."""
        tokens = checked_tokens(tokens, "The training token array")
        S, T = config.lanes, config.tokens_per_update
        self.tokens_per_update = T
        self.segments = (len(tokens) - S) // (T * S)
        if self.segments < 1:
            raise InputError(
                f"The training cache has {len(tokens)} tokens; it must have at least {S * (T + 1)} for {S} lanes "
                f"(population = {config.population} in groups of {config.group}) of tokens_per_update = {T}. It is "
                f"enough for at most {len(tokens) // (T + 1)} lanes."
            )
        check_vocabulary(tokens, config.vocab_size)
        length = self.segments * T + 1
        self.lanes = tokens[: S * length].reshape(S, length)

    def batch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of an epoch, (S, T) uint8 each; wraps around after `segments` epochs."""
        T = self.tokens_per_update
        start = (epoch % self.segments) * T
        return self.lanes[:, start : start + T], self.lanes[:, start + 1 : start + T + 1]
