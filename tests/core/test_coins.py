"""The coins of nudged activations, each held against its own bit of its own Threefry block."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config
from nanoegg_mlx.core.coins import NudgedActivations, blocks_per_token, coin_key, coins, nodes
from tests import oracle_activations
from tests.oracle import fold_in, threefry2x32

FIRST_BLOCKS = {
    ("emb", None): 0, ("f", 0): 2, ("c", 0): 4, ("a", 0): 6, ("b", 0): 11, ("f", 1): 13, ("c", 1): 15, ("a", 1): 17,
    ("b", 1): 22, ("head", None): 24,
}  # fmt: skip
"""Width 65 takes two blocks, 4 * 65 = 260 five; a vocabulary of 5 takes one."""


def config_of(**changes: Any) -> Config:
    settings = {"n_layer": 2, "n_embd": 65, "vocab_size": 5, "population": 2**30, "perturb": "activations"}
    return Config(**{**settings, **changes})


def package_coins(config: Config, epoch: int, pair: int, t: int) -> dict[tuple[str, int | None], np.ndarray]:
    numbers = (mx.array(n, dtype=mx.uint64) for n in (pair, t))
    return {node: np.array(xi) for node, xi in coins(config, coin_key(config, epoch), *numbers).items()}


def coin(seed: int, epoch: int, block: int, i: int) -> int:
    """Coin `i` of the vector whose first block is `block`, by the definition, in Python integers."""
    key = fold_in(fold_in((seed >> 32, seed & 0xFFFFFFFF), 2), epoch)
    m = block + i // 64
    words = threefry2x32(key, m >> 32, m & 0xFFFFFFFF)
    return 1 if words[i % 64 // 32] >> i % 32 & 1 else -1


def test_nodes_are_numbered_in_the_order_of_a_token() -> None:
    config = config_of()
    assert {node.key: node.first for node in nodes(config)} == FIRST_BLOCKS
    assert list(FIRST_BLOCKS) == [node.key for node in nodes(config)]
    assert [node.size for node in nodes(config)] == [65, 65, 65, 260, 65, 65, 65, 260, 65, 5]
    assert blocks_per_token(config) == 25


@pytest.mark.parametrize(
    ("width", "vocab_size", "blocks"),
    [(1, 1, 6), (16, 64, 6), (17, 65, 8), (63, 256, 12), (64, 256, 12), (65, 256, 17), (128, 256, 20)],
)
def test_blocks_of_a_token(width: int, vocab_size: int, blocks: int) -> None:
    assert blocks_per_token(config_of(n_layer=1, n_embd=width, vocab_size=vocab_size)) == blocks


@pytest.mark.parametrize(
    ("pair", "t", "tokens"),
    [
        (0, 0, 100),
        (0, 99, 100),
        (1, 0, 100),
        (171_798_691, 0, 1),  # blocks from 2^32 - 21 on
        (2**29 - 1, 99, 100),
        (2**29 - 1, 2**30 - 1, 2**30),  # about 0.78 * 2^64
    ],
)
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**64 - 1, 70_000)])
def test_every_coin_is_its_own_bit(seed: int, epoch: int, pair: int, t: int, tokens: int) -> None:
    config = config_of(seed=seed, tokens_per_update=tokens)
    first = (pair * tokens + t) * 25
    xi = package_coins(config, epoch, pair, t)
    assert list(xi) == list(FIRST_BLOCKS)
    for node, block in FIRST_BLOCKS.items():
        expected = [coin(seed, epoch, first + block, i) for i in range(len(xi[node]))]
        assert xi[node].tolist() == expected, node


def test_recorded_coins() -> None:
    config = config_of(n_layer=1, n_embd=8)
    xi = package_coins(config, 0, 0, 0)
    assert xi["emb", None].tolist() == [1, 1, -1, -1, 1, -1, 1, -1]
    assert xi["emb", None].dtype == np.int32


def test_the_head_rule_does_not_change_the_numbering() -> None:
    error, perturb = (package_coins(config_of(head_rule=rule), 4, 9, 7) for rule in ("error", "perturb"))
    for node, xi in error.items():
        assert np.array_equal(xi, perturb[node])


def test_coins_differ_between_epochs_pairs_and_tokens() -> None:
    config = config_of()
    drawn = {package_coins(config, *place)["a", 0].tobytes() for place in np.ndindex(3, 3, 3)}
    assert len(drawn) == 27


def test_coins_are_fair_and_independent() -> None:
    """Means and products of neighbouring tokens' coins, over 640 tokens: below five standard deviations."""
    config = config_of(n_layer=1, n_embd=64)
    key = coin_key(config, 1)
    draw = mx.vmap(lambda t: coins(config, key, mx.array(3, dtype=mx.uint64), t)["a", 0])
    xi = np.array(draw(mx.arange(640, dtype=mx.uint64)))
    assert set(np.unique(xi)) == {-1, 1}
    assert np.abs(xi.sum(axis=0)).max() < 5 * 640**0.5
    assert abs(int(xi.sum())) < 5 * xi.size**0.5
    assert abs(int((xi[1:] * xi[:-1]).sum())) < 5 * xi.size**0.5


def test_the_twin_has_the_same_coins() -> None:
    config = config_of(tokens_per_update=1000)
    expected = oracle_activations.coins(config, 2**29 - 5, 998, 12)
    for (name, layer), xi in package_coins(config, 12, 2**29 - 5, 998).items():
        assert np.array_equal(xi, expected[name, layer or 0])


@pytest.mark.parametrize(("head_rule", "head"), [("error", [0, 0]), ("perturb", [7, -7])])
@pytest.mark.parametrize("sign", [1, -1])
def test_nudges_have_their_size_and_the_members_sign(sign: int, head_rule: str, head: list[int]) -> None:
    config = config_of(nudge=3, head_nudge=7, head_rule=head_rule)
    xi = {key: mx.array([1, -1], dtype=mx.int32) for key in (("emb", None), ("b", 1), ("head", None))}
    perturbation = NudgedActivations(xi, sign, config)
    zero, large = mx.zeros(2, dtype=mx.int32), mx.array([126, -127], dtype=mx.int32)
    assert perturbation.node("b", 1, zero).tolist() == [3 * sign, -3 * sign]
    assert perturbation.node("head", None, zero).tolist() == [sign * nudge for nudge in head]
    # Clipped here; the network clips the other nodes.
    assert perturbation.embedding(zero[0], large).tolist() == ([127, -127] if sign == 1 else [123, -124])
    assert perturbation.node("b", 1, large).tolist() == [126 + 3 * sign, -127 - 3 * sign]
