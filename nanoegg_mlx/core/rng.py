"""Random numbers: Threefry-2x32 keys and integer normals (spec section 1).

Every random number is a pure function of (key, position), so nothing is stored and any part of the noise can be
computed again anywhere: the reference's table of 2^30 int8 normals is `int_normals(key(seed), positions)`.
A key is a uint32 array with its two words in the last axis; leading axes hold many keys.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Literal

import mlx.core as mx
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(key: mx.array, x0: mx.array, x1: mx.array) -> tuple[mx.array, mx.array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, Random123).

    Args:
        key: uint32 (..., 2).
        x0, x1: uint32 counter words, of shapes that broadcast against the key's leading axes.

    Returns:
        The two output words, uint32, of the broadcast shape.
    """
    k0, k1 = key[..., 0], key[..., 1]
    schedule = (k0, k1, k0 ^ k1 ^ mx.array(_PARITY, dtype=mx.uint32))
    x0, x1 = x0 + k0, x1 + k1
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + mx.array(group + 1, dtype=mx.uint32)
    return x0, x1


def key(seed: int) -> mx.array:
    """The key of a seed in [0, 2^64): uint32 (2,)."""
    return mx.array([seed >> 32, seed & 0xFFFFFFFF], dtype=mx.uint32)


def fold_in(key: mx.array, n: int | mx.array) -> mx.array:
    """The key derived from `key` (..., 2) and the number n (an int, or uint32 that broadcasts): uint32 (..., 2)."""
    n = mx.array(n, dtype=mx.uint32)
    return mx.stack(list(threefry2x32(key, mx.zeros_like(n), n)), axis=-1)


def split(key: mx.array, count: int) -> mx.array:
    """`count` keys from each key (..., 2): uint32 (..., count, 2), entry i being fold_in(key, i)."""
    return fold_in(key[..., None, :], mx.arange(count, dtype=mx.uint32))


@cache
def normal_staircase(kind: Literal["trunc", "round"]) -> np.ndarray:
    """The int8 value of 16 z for each 23-bit draw: int8 (2^23,), 8 MiB, built from 163 or 164 thresholds.

    `trunc` is int8(trunc(16 z)), for perturbations; `round` is int8(rint(16 z)), for initial weights.
    """
    text = resources.files("nanoegg_mlx.core").joinpath("normal_thresholds.json").read_text()
    steps = json.loads(text)[kind]
    edges = [0, *steps["index"], 1 << 23]
    return np.repeat(np.array([steps["first"], *steps["value"]], np.int8), np.diff(edges))


@cache
def _staircase_on_device(kind: Literal["trunc", "round"]) -> mx.array:
    table = mx.array(normal_staircase(kind))
    mx.eval(table)
    return table


def int_normals(key: mx.array, positions: mx.array, kind: Literal["trunc", "round"] = "trunc") -> mx.array:
    """Draws of 16 times a standard normal, as integers.

    Args:
        key: uint32 (..., 2).
        positions: uint32, which draws, below 2^32; broadcasts against the key's leading axes.
        kind: `trunc` (perturbations) or `round` (initial weights).

    Returns:
        int8, the broadcast shape.
    """
    y0, y1 = threefry2x32(key, mx.zeros_like(positions), positions)
    return mx.take(_staircase_on_device(kind), (y0 ^ y1) >> 9)
