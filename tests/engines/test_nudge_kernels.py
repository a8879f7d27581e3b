"""Kernels of nudged activations of every instruction set, and their scalar twins, against the definition and NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx.core import activations
from nanoegg_mlx.core.fixed_point import POW2
from tests import oracle
from tests.engines import kernels
from tests.engines.inputs import TWINS, numbers


@pytest.mark.parametrize("isa", TWINS)
def test_coins(isa: str) -> None:
    """64-bit counters, also where their low word wraps."""
    for count in (0, 1, 15, 16, 17, 100):
        for first in (0, 2**32 - 5, 2**63 + 1, 2**64 - 3):
            counters = [(first + i) % 2**64 for i in range(count)]
            expected = [oracle.threefry2x32((7, 2**32 - 1), m >> 32, m & 0xFFFFFFFF) for m in counters]
            words = kernels.coins((7, 2**32 - 1), first, count, isa=isa)
            assert words.tolist() == [int(a) | int(b) << 32 for a, b in expected]


@pytest.mark.parametrize("isa", TWINS)
def test_flips(isa: str) -> None:
    rng = np.random.default_rng(1)
    for blocks in (1, 2, 5):
        words = np.array([0, 2**64 - 1, *rng.integers(0, 2**64, 3, np.uint64)], np.uint64)[-blocks:]
        bits = np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)
        v = numbers(rng, 64 * blocks)
        assert np.array_equal(kernels.flip(words, v, isa=isa), np.where(bits, v, -v))
        assert np.array_equal(kernels.flip(words, v, isa=isa, inverted=True), np.where(bits, -v, v))


@pytest.mark.parametrize("isa", TWINS)
def test_nudged_rows_of_every_width(isa: str) -> None:
    rng = np.random.default_rng(2)
    for width in [*range(1, 301), 16384]:
        a, b, bias, gates, h, x = (numbers(rng, width) for _ in range(6))
        e = numbers(rng, width, bound=64)
        total = a.astype(np.int64) + b + bias + e
        f, g = kernels.gate_nudged(a, b, bias, e, h, isa=isa)
        assert np.array_equal(f, np.clip(total, -127, 127))
        assert np.array_equal(g, ((f.astype(np.int64) + 127) * h) >> 8)
        state = h + (((gates.astype(np.int64) + 127) * (np.clip(total, -127, 127) - h)) >> 8)
        new_h, new_x = kernels.recur_nudged(a, b, bias, e, gates, h, x, isa=isa)
        assert np.array_equal(new_h, state) and np.array_equal(new_x, np.clip(x + state, -127, 127))
        assert np.array_equal(kernels.add_nudged(a, b, e, isa=isa), np.clip(total - bias, -127, 127))


@pytest.mark.parametrize("isa", TWINS)
def test_head_errors_of_every_vocabulary(isa: str) -> None:
    rng = np.random.default_rng(3)
    for vocab in range(1, 257):
        logits = numbers(rng, 2, vocab)
        target = int(rng.integers(vocab))
        log2 = (
            logits[:, target].astype(np.int32) + 128 - np.array([oracle.log_likelihood(row, target) for row in logits])
        )
        errors = [activations.head_error(mx.array(row, dtype=mx.int32), mx.array(target)) for row in logits]
        expected = np.array((errors[0] + errors[1]) >> 1)
        assert np.array_equal(kernels.head_errors(logits, log2.astype(np.int32), target, isa=isa), expected), vocab


@pytest.mark.parametrize("isa", [isa for isa in TWINS if isa != "naive"])
def test_every_likelihood(isa: str) -> None:
    """The whole of POW2, and beyond its end, whatever LOG2 goes with the logits."""
    table = np.array(POW2)
    logits = np.arange(-127, 128, dtype=np.int8)
    for log2 in range(0, 640, 3):
        index = np.clip(log2 - 128 - logits.astype(np.int64), 0, 255)
        errors = kernels.head_errors(np.stack([logits, logits]), np.full(2, log2, np.int32), 3, isa=isa)
        assert np.array_equal(errors, 8192 * (np.arange(255) == 3) - table[index])


@pytest.mark.parametrize("isa", TWINS)
def test_credit(isa: str) -> None:
    rng = np.random.default_rng(4)
    for decay in range(16):
        d = rng.integers(-400, 401, (int(rng.integers(1, 50)), int(rng.integers(1, 40)))).astype(np.int32)
        d[rng.random(d.shape) < 0.3] //= 50
        own, later = kernels.credit(d, decay, isa=isa)
        assert np.array_equal(own, np.clip(d, -127, 127))
        assert np.array_equal(later, np.clip(np.array(activations.credit(mx.array(d.T), decay)).T, -127, 127))


@pytest.mark.parametrize("isa", TWINS)
def test_vote_sums(isa: str) -> None:
    rng = np.random.default_rng(5)
    for count in (1, 3, 8, 9, 64, 255, 257, 1000):
        for entries in (1, 15, 16, 17, 64, 65, 130):
            n = int(rng.integers(1, 65))
            words = rng.integers(0, 2**64, count, np.uint64)
            w, x = numbers(rng, count), numbers(rng, count, entries)
            byte = rng.integers(0, 256, count).astype(np.uint8)
            signs = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(count, 64)[:, :n].astype(np.int64)
            a = w[:, None] * (2 * signs - 1)
            expected = np.zeros((256, n), np.int64)
            np.add.at(expected, byte, a)
            Z, S, by_byte = kernels.vote_sums(words, w, byte, x, n, isa=isa)
            assert np.array_equal(Z, a.T @ x.astype(np.int64)), (count, entries)
            assert np.array_equal(S, ((w[:, None].astype(np.int64) * x) ** 2).sum(0)), (count, entries)
            assert np.array_equal(by_byte, expected), (count, entries)


@pytest.mark.parametrize("isa", TWINS)
@pytest.mark.parametrize(("credit", "value"), [(127, 127), (-127, 127), (127, -127)])
def test_the_largest_vote_sums(isa: str, credit: int, value: int) -> None:
    """As many k as are summed in int32 at a time, of one sign, and squares beyond 32 bits."""
    count = 1 << 16
    words = np.full(count, 1, np.uint64)
    w, x = np.full(count, credit, np.int8), np.full((count, 3), value, np.int8)
    Z, S, _ = kernels.vote_sums(words, w, np.zeros(count, np.uint8), x, 2, isa=isa)
    assert np.array_equal(Z, np.outer([1, -1], [credit * value * count] * 3))
    assert np.array_equal(S, [count * 127**4] * 3)


@pytest.mark.parametrize("isa", TWINS)
def test_sums_of_coins(isa: str) -> None:
    """Of lanes of 2 to 128 members."""
    rng = np.random.default_rng(6)
    for samples in (1, 2, 3, 9, 63, 126, 127):
        for count in (1, 3, 8, 9, 64, 65, 257):
            words = rng.integers(0, 2**64, (samples, count), np.uint64)
            w = numbers(rng, samples, count)
            assert_digits(words, w, isa)


@pytest.mark.parametrize("isa", TWINS)
@pytest.mark.parametrize("credit", [127, -127])
@pytest.mark.parametrize("coins", [0, 1, 2**64 - 1])
def test_the_largest_sums_of_coins(isa: str, credit: int, coins: int) -> None:
    """127 samples of the largest credit with equal coins: 16129 and -16129."""
    w = np.full((127, 11), credit, np.int8)
    Q = assert_digits(np.full((127, 11), coins, np.uint64), w, isa)
    assert np.abs(Q).min() == 127 * 127


def assert_digits(words: np.ndarray, w: np.ndarray, isa: str) -> np.ndarray:
    """The digits of Q are those of NumPy's sums, and are the only ones within their limits. Returns Q (K, 64)."""
    bits = np.unpackbits(words.view(np.uint8).reshape(*w.shape, 8), axis=-1, bitorder="little")
    Q = (w[..., None].astype(np.int64) * (2 * bits.astype(np.int64) - 1)).sum(0)
    low, high = kernels.coin_digits(words, w, isa=isa)
    assert low.min() >= -64 and low.max() <= 63
    assert np.array_equal(low + 128 * high.astype(np.int64), Q), w.shape
    return Q


@pytest.mark.parametrize("isa", TWINS)
def test_squares_with_weights(isa: str) -> None:
    """Weights up to the sum of 127 squares of the largest credit, all of them this large in every other case."""
    rng = np.random.default_rng(7)
    most = 127 * 127**2
    for count in (1, 3, 8, 9, 64, 255, 257, 1000):
        for number, entries in enumerate((1, 15, 16, 17, 64, 65, 130)):
            q = np.full(count, most) if number % 2 else rng.integers(0, most + 1, count)
            x = np.full((count, entries), -127, np.int8) if number == 3 else numbers(rng, count, entries)
            S = kernels.weighted_squares(q.astype(np.int32), x, isa=isa)
            assert np.array_equal(S, (q[:, None] * x.astype(np.int64) ** 2).sum(0)), (count, entries)


def test_the_table_of_likelihoods() -> None:
    assert [kernels.pow2_entry(k) for k in range(256)] == POW2
