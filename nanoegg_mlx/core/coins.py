"""Nudged activations: a fresh fair coin for each entry of each node vector, at every token (docs/activations.md).

The coins of a pair are bits of Threefry blocks numbered by pair, token and node, so any of them can be computed
anywhere; both members of a pair use the same coins with opposite signs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import clip
from nanoegg_mlx.core.model import Perturbation
from nanoegg_mlx.core.rng import fold_in, key, threefry2x32

BLOCK = 64
"""Coins in a Threefry block: the bits of its two words."""
NodeKey = tuple[str, int | None]
"""Name (emb, f, c, a, b, head) and layer of a node vector."""
Coins = dict[NodeKey, mx.array]
"""Node -> xi in {-1, +1}, (size,) int32; under leading axes for many pairs and tokens."""


class Node(NamedTuple):
    """A node vector: its key, its size, and the number of its first block."""

    key: NodeKey
    size: int
    first: int


@lru_cache(maxsize=8)
def nodes(config: Config) -> tuple[Node, ...]:
    """The node vectors that a token passes, in order."""
    D, L = config.n_embd, config.n_layer
    sizes: list[tuple[NodeKey, int]] = [(("emb", None), D)]
    for l in range(L):
        sizes += [(("f", l), D), (("c", l), D), (("a", l), 4 * D), (("b", l), D)]
    sizes.append((("head", None), config.vocab_size))
    found, first = [], 0
    for node, size in sizes:
        found.append(Node(node, size, first))
        first += -(-size // BLOCK)
    return tuple(found)


def blocks_per_token(config: Config) -> int:
    """C: the Threefry blocks of all node vectors."""
    last = nodes(config)[-1]
    return last.first + -(-last.size // BLOCK)


def coin_key(config: Config, epoch: int) -> mx.array:
    """key_e: the key of an epoch's coins, uint32 (2,)."""
    return fold_in(fold_in(key(config.seed), 2), epoch)


def coins(config: Config, epoch_key: mx.array, pair: mx.array, t: mx.array) -> Coins:
    """The coins of one pair at one token.

    Args:
        config: shapes and tokens_per_update, which number the blocks.
        epoch_key: `coin_key` of the epoch.
        pair: uint64 scalar, number of the pair in the population.
        t: uint64 scalar, number of the token in the epoch.

    Returns:
        Node -> (size,) int32.
    """
    T, C = (mx.array(n, dtype=mx.uint64) for n in (config.tokens_per_update, blocks_per_token(config)))
    block = (pair * T + t) * C + mx.arange(blocks_per_token(config), dtype=mx.uint64)
    high, low = block >> mx.array(32, dtype=mx.uint64), block & mx.array(0xFFFFFFFF, dtype=mx.uint64)
    words = threefry2x32(epoch_key, high.astype(mx.uint32), low.astype(mx.uint32))
    bits = mx.stack(list(words), axis=-1)[..., None] >> mx.arange(32, dtype=mx.uint32)
    xi = mx.flatten((bits & 1).astype(mx.int32) * 2 - 1, -3, -1)
    return {node.key: xi[..., BLOCK * node.first : BLOCK * node.first + node.size] for node in nodes(config)}


class NudgedActivations(Perturbation):
    """The perturbation of one member's activations at one token: sign * nudge * xi, added at each node."""

    def __init__(self, xi: Coins, sign: mx.array, config: Config) -> None:
        """Args: sign, () integer, 1 for the even member of a pair and -1 for the odd one."""
        self._xi, self._sign = xi, sign
        self._nudge, self._head_nudge = config.nudge, config.head_nudge if config.head_rule == "perturb" else 0

    def embedding(self, token: mx.array, row: mx.array) -> mx.array:
        return clip(row + self._xi["emb", None] * (self._nudge * self._sign))

    def node(self, name: str, layer: int | None, v: mx.array) -> mx.array:
        nudge = self._head_nudge if name == "head" else self._nudge
        return v + self._xi[name, layer] * (nudge * self._sign) if nudge else v
