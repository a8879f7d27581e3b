"""The parameter tree: names, shapes, initial values and keys of the 13 leaves (spec section 2).

Parameters travel as a flat dict of int8 arrays, in the order of `leaves()`. Leaves called `blocks.` are stacked
over layers in their first axis. Matrices are stored (out, in).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import ONE
from nanoegg_mlx.core.rng import fold_in, int_normals, key, split
from nanoegg_mlx.errors import InputError

Params = dict[str, mx.array]
Array = TypeVar("Array", mx.array, np.ndarray)


@dataclass(frozen=True)
class Leaf:
    """One entry of the tree: `shape` without the layer axis, `layers` the length of that axis (0: none)."""

    name: str
    kind: Literal["matrix", "vector"]
    shape: tuple[int, ...]
    layers: int

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        return (self.layers, *self.shape) if self.layers else self.shape


def leaves(config: Config) -> list[Leaf]:
    """The 13 leaves, in the order that numbers their keys."""
    V, D, L = config.vocab_size, config.n_embd, config.n_layer
    return [
        Leaf("blocks.att.Uf", "matrix", (D, D), L),
        Leaf("blocks.att.Uh", "matrix", (D, D), L),
        Leaf("blocks.att.Wf", "matrix", (D, D), L),
        Leaf("blocks.att.Wh", "matrix", (D, D), L),
        Leaf("blocks.att.bf", "vector", (D,), L),
        Leaf("blocks.att.bh", "vector", (D,), L),
        Leaf("blocks.ln1.weight", "vector", (D,), L),
        Leaf("blocks.ln2.weight", "vector", (D,), L),
        Leaf("blocks.mlp.0.weight", "matrix", (4 * D, D), L),
        Leaf("blocks.mlp.1.weight", "matrix", (D, 4 * D), L),
        Leaf("emb", "matrix", (V, D), 0),
        Leaf("head", "matrix", (V, D), 0),
        Leaf("ln_out.weight", "vector", (D,), 0),
    ]


def matrix_entries(config: Config) -> int:
    """The entries of all matrices: about the multiply-adds of one token of one member."""
    return sum(math.prod(leaf.stacked_shape) for leaf in leaves(config) if leaf.kind == "matrix")


@lru_cache(maxsize=4)
def leaf_keys(config: Config) -> dict[str, mx.array]:
    """The keys of the perturbations: uint32 (L, 2) for stacked leaves, (2,) for the others (section 3).

    Cached, since every epoch needs it.
    """
    es_key = fold_in(key(config.seed), 1)
    all_leaves = leaves(config)
    keys = split(es_key, len(all_leaves))
    of_leaves = {
        leaf.name: split(keys[number], leaf.layers) if leaf.layers else keys[number]
        for number, leaf in enumerate(all_leaves)
    }
    mx.eval(of_leaves)
    return of_leaves


def init_params(config: Config) -> Params:
    """Initial parameters of `config.seed`: matrices are integer normals, norm weights 1.0 in Q4, biases 0.

    With `config.zero_head` the head is 0, which is no option of the reference.

    Returns:
        Leaf name -> int8 array of its stacked shape, in leaf order, evaluated.
    """
    k_emb, k_blocks, k_head = split(fold_in(key(config.seed), 0), 3)
    k_att, k_mlp = (k[:, 0] for k in mx.split(split(split(k_blocks, config.n_layer), 2), 2, axis=1))
    k_att, k_mlp = split(k_att, 4), split(k_mlp, 2)
    matrix_keys = {
        "blocks.att.Wf": k_att[:, 0],
        "blocks.att.Uf": k_att[:, 1],
        "blocks.att.Wh": k_att[:, 2],
        "blocks.att.Uh": k_att[:, 3],
        "blocks.mlp.0.weight": k_mlp[:, 0],
        "blocks.mlp.1.weight": k_mlp[:, 1],
        "emb": k_emb,
        "head": k_head,
    }
    params = {}
    for leaf in leaves(config):
        if leaf.kind == "matrix" and not (leaf.name == "head" and config.zero_head):
            size = leaf.shape[0] * leaf.shape[1]
            draws = mx.arange(size, dtype=mx.uint32)
            value = int_normals(matrix_keys[leaf.name][..., None, :], draws, "round")
        else:
            norm_weight = leaf.name.endswith("weight")
            value = mx.full(leaf.stacked_shape, ONE if norm_weight else 0, dtype=mx.int8)
        params[leaf.name] = value.reshape(leaf.stacked_shape)
    mx.eval(params)
    return params


def split_leaves(flat: Array, config: Config) -> dict[str, Array]:
    """All leaves, each of its stacked shape, from one (entries,) array that has them in leaf order."""
    parts, first = {}, 0
    for leaf in leaves(config):
        last = first + math.prod(leaf.stacked_shape)
        parts[leaf.name] = flat[first:last].reshape(leaf.stacked_shape)
        first = last
    return parts


def check_params(params: Params, config: Config) -> None:
    """Raises InputError, naming the leaf, if `params` is not the tree that `config` describes."""
    expected = {leaf.name: leaf.stacked_shape for leaf in leaves(config)}
    for name in [*expected, *params]:
        if name not in params:
            raise InputError(f"The leaf {name!r} is missing from the parameters; they must be {list(expected)}.")
        if name not in expected:
            raise InputError(f"The leaf {name!r} of the parameters is unknown; they must be {list(expected)}.")
        if params[name].dtype != mx.int8:
            raise InputError(f"Parameter {name!r} is {params[name].dtype}; it must be int8.")
        if tuple(params[name].shape) != expected[name]:
            raise InputError(
                f"The shape of parameter {name!r} is {tuple(params[name].shape)}; it must be {expected[name]} for "
                f"n_layer = {config.n_layer}, n_embd = {config.n_embd}, vocab_size = {config.vocab_size}."
            )
        check_entries(params[name], f"Parameter {name!r}")


def check_entries(values: mx.array, name: str) -> None:
    """Raises InputError, naming the int8 array, if it has an entry -128."""
    if mx.any(values == -128).item():
        raise InputError(f"{name} has an entry -128; entries must be from -127 to 127.")


def model_hash(params: Params, config: Config) -> bytes:
    """SHA-256 that identifies a model in a compressed file (docs/compressed-format.md): of its shape and parameters.

    Args:
        params: leaf name -> int8 array.
        config: its shapes.

    Returns:
        32 bytes.
    """
    digest = hashlib.sha256(b"nanoegg1")
    for size in (config.n_layer, config.n_embd, config.vocab_size):
        digest.update(size.to_bytes(4, "little"))
    for leaf in leaves(config):
        digest.update(np.ascontiguousarray(params[leaf.name]).tobytes())
    return digest.digest()
