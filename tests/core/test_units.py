"""The recorded unit vectors: keys, noise slices, norms; and Random123's published known answers."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config
from nanoegg_mlx.core.model import norm
from nanoegg_mlx.core.noise import LowRank, leaf_bases, member_noise, noise_pair, pair_noise
from nanoegg_mlx.core.params import leaves
from nanoegg_mlx.core.rng import fold_in, int_normals, key, split, threefry2x32
from nanoegg_mlx.engines import native_problem
from tests.oracle import Oracle
from tests.traces import GOLDEN


@pytest.fixture(scope="module")
def units() -> Iterator[dict[str, np.ndarray]]:
    with np.load(GOLDEN / "units.npz") as archive:
        yield {name: archive[name] for name in archive.files}


@pytest.mark.parametrize(
    ("key_words", "counter", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_known_answers(key_words: tuple, counter: tuple, answer: tuple) -> None:
    words = mx.array(key_words, dtype=mx.uint32)
    x0, x1 = (mx.array(word, dtype=mx.uint32) for word in counter)
    assert tuple(y.item() for y in threefry2x32(words, x0, x1)) == answer


@pytest.mark.parametrize("seed", [0, 1, 7, 4294967295])
def test_keys(units: dict[str, np.ndarray], seed: int) -> None:
    assert np.array_equal(np.array(key(seed)), units[f"key/{seed}"])
    assert np.array_equal(np.array(split(key(seed), 5)), units[f"split5/{seed}"])
    folded = units[f"fold/{seed}"]
    assert np.array_equal(np.array(fold_in(key(seed), 0)), folded[0])


def test_a_seed_of_64_bits_has_two_words() -> None:
    assert np.array(key((5 << 32) + 9)).tolist() == [5, 9]


def test_noise_slices(units: dict[str, np.ndarray]) -> None:
    for offset, expected in zip(units["noise/offsets"], units["noise/seed0"], strict=True):
        positions = mx.arange(int(offset), int(offset) + len(expected), dtype=mx.uint32)
        assert np.array_equal(np.array(int_normals(key(0), positions)), expected)


def test_norm_vectors(units: dict[str, np.ndarray]) -> None:
    batched = mx.vmap(norm)
    x, weight = (mx.array(units[name].astype(np.int32)) for name in ("norm/x", "norm/weight"))
    assert np.array_equal(np.array(batched(x, weight)), units["norm/y"])


def test_vmapped_noise_is_each_pairs_own() -> None:
    """mx.vmap over pairs equals one pair at a time, also if members share noise."""
    config = Config(n_layer=2, n_embd=6, population=12, rank=2, num_perturbations=8, group_size=4)
    bases = leaf_bases(config, 3)
    numbers = mx.arange(6, dtype=mx.uint32)
    together = member_noise(mx.vmap(lambda pair: pair_noise(config, bases, pair))(noise_pair(config, numbers)))
    for pair in range(6):
        alone = pair_noise(config, bases, mx.array(pair % 4, dtype=mx.uint32))
        for name, E in together.items():
            one = alone[name]
            if isinstance(E, LowRank) and isinstance(one, LowRank):
                assert np.array_equal(np.array(E.A[2 * pair]), np.array(one.A))
                assert np.array_equal(np.array(E.A[2 * pair + 1]), -np.array(one.A))
                assert np.array_equal(np.array(E.B[2 * pair]), np.array(one.B))
                assert np.array_equal(np.array(E.B[2 * pair + 1]), np.array(one.B))
            else:
                assert np.array_equal(np.array(E[2 * pair]), np.array(one))
                assert np.array_equal(np.array(E[2 * pair + 1]), -np.array(one))


def test_thirteen_leaves_in_sorted_order() -> None:
    names = [leaf.name for leaf in leaves(Config())]
    assert len(names) == 13 and names == sorted(names)
    assert set(names) == set(Oracle(Config(n_layer=1, n_embd=4, population=2), np.ones(999, np.uint8)).params)


@pytest.mark.skipif(native_problem() is not None, reason="the CPU engine was not built")
def test_native_noise_is_the_same_sequence() -> None:
    from tests.engines import kernels

    positions = mx.arange(2**30 - 5000, 2**30, dtype=mx.uint32)
    expected = np.array(int_normals(key(77), positions))
    assert np.array_equal(kernels.draw((0, 77), 2**30 - 5000, 5000, isa=kernels.native.info()["isa"]), expected)
