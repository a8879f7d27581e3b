"""The partition of a run over the ranks of a job: members by lanes, their states, and the shared parameters.

Only rank 0 reads and writes checkpoints, which hold the whole population. So a run can be resumed with another number
of ranks, and on hosts that share no file system.
"""

from __future__ import annotations

import hashlib

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, leaves, split_leaves
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.ranks.world import World

_PIECE = 16 << 20
"""Bytes of states in one message."""


def members_of(config: Config, world: World, rank: int | None = None) -> range:
    """The members that this rank (or `rank`) scores: those of its share of the lanes.

    Raises:
        InputError: more ranks than lanes.
    """
    if world.size > config.lanes:
        raise InputError(
            f"The number of processes is {world.size}; it must be at most {config.lanes}, the number of text lanes of "
            f"population = {config.population} in groups of {config.group}."
        )
    lanes = world.share(config.lanes, rank)
    return range(lanes.start * config.group, lanes.stop * config.group)


def gather_states(mine: np.ndarray, config: Config, world: World) -> np.ndarray | None:
    """Every member's hidden state on rank 0, None on the other ranks.

    Args:
        mine: (members of this rank, L, D) int8.

    Returns:
        (N, L, D) int8. Raises JobError if a rank is lost.
    """
    if world.size == 1:
        return mine
    shares = [members_of(config, world, rank) for rank in range(world.size)]
    most = max(map(len, shares))
    item = config.n_layer * config.n_embd
    whole = np.empty((config.population, config.n_layer, config.n_embd), np.int8) if world.is_root else None
    width = max(_PIECE // (item * world.size), 1)
    for first in range(0, most, width):
        piece = np.zeros((min(width, most - first), *mine.shape[1:]), np.int8)
        some = mine[first : first + width]
        piece[: len(some)] = some
        rows = world.gather(piece.reshape(-1).view(np.uint8), "the members' states")
        if whole is not None:
            for members, row in zip(shares, rows, strict=True):
                part = members[first : first + width]
                whole[part.start : part.stop] = row.view(np.int8).reshape(piece.shape)[: len(part)]
    return whole


def scatter_states(whole: np.ndarray | None, config: Config, world: World) -> np.ndarray:
    """The hidden states of this rank's members, (members, L, D) int8, out of all (N, L, D) on rank 0.

    Raises JobError if a rank is lost.
    """
    if world.size == 1:
        assert whole is not None
        return whole
    members = members_of(config, world)
    mine = np.empty((len(members), config.n_layer, config.n_embd), np.int8)
    width = max(_PIECE // (config.n_layer * config.n_embd), 1)
    for first in range(0, config.population, width):
        some = None if whole is None else np.ascontiguousarray(whole[first : first + width]).reshape(-1).view(np.uint8)
        piece = world.broadcast_bytes(some, "the members' states").view(np.int8).reshape(-1, *mine.shape[1:])
        begin, end = max(first, members.start), min(first + len(piece), members.stop)
        if begin < end:
            mine[begin - members.start : end - members.start] = piece[begin - first : end - first]
    return mine


def broadcast_params(params: Params | None, config: Config, world: World, dtype: type[np.integer] = np.int8) -> Params:
    """Rank 0's parameters, or other arrays of their shapes, on every rank. Raises JobError if a rank is lost."""
    if world.size == 1:
        assert params is not None
        return params
    content = None
    if params is not None:
        content = np.concatenate([np.array(params[leaf.name]).reshape(-1) for leaf in leaves(config)]).view(np.uint8)
    flat = world.broadcast_bytes(content, "the parameters").view(dtype)
    return {name: mx.array(value) for name, value in split_leaves(flat, config).items()}


def params_digest(*trees: Params | None) -> bytes:
    """A digest of the parameters and of other arrays of their names, 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for tree in filter(None, trees):
        for name in sorted(tree):
            digest.update(np.array(tree[name]).data)
    return digest.digest()
