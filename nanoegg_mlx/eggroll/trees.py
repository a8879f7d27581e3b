"""Parameter trees: nested dicts and lists of arrays, flattened to names joined by dots."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

Tree = Any
"""The parameters of an mlx.nn.Module, or any nesting of dicts and lists of arrays."""


def flat(tree: Tree) -> dict[str, mx.array]:
    """Name -> array of a parameter tree, names joined by dots."""
    return dict(tree_flatten(tree))


def take(tree: Tree, index: int | range) -> Tree:
    """One entry, or a range of entries, of the leading axis of every array in a tree."""
    where = slice(index.start, index.stop) if isinstance(index, range) else index
    return tree_map(lambda x: x[where], tree)


def inner(a: dict[str, mx.array], b: dict[str, mx.array]) -> float:
    """The inner product of two flat trees of the same names and shapes."""
    return sum(np.array([mx.sum(a[name] * b[name]) for name in a]).tolist())
