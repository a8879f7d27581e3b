"""Every kernel of every instruction set against its scalar twin and NumPy's integers, on random and extreme inputs."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np
import pytest

from nanoegg_mlx.core.fixed_point import EXP2, LOG2_STEPS
from nanoegg_mlx.core.rng import normal_staircase
from tests import oracle
from tests.engines import kernels
from tests.engines.inputs import ISAS, TWINS, numbers


def wrapped(x: np.ndarray) -> np.ndarray:
    """The low 32 bits of integers, as int32."""
    return x.astype(np.int64).astype(np.uint32).view(np.int32)


def expected_matmul(w: np.ndarray, x: np.ndarray, b: np.ndarray | None, a: np.ndarray | None, shift: int) -> np.ndarray:
    """Spec section 3's product for every member, with the perturbation's int32 overflow."""
    y = x.astype(np.int64) @ w.astype(np.int64).T
    if b is not None and a is not None:
        projection = np.einsum("mrn,mn->mr", b.astype(np.int64), x.astype(np.int64))
        term = np.einsum("mro,mr->mo", a.astype(np.int64), projection)
        y = wrapped(y + (wrapped(term) >> shift)).astype(np.int64)
    return np.clip(y // (16 * math.isqrt(w.shape[1])), -127, 127)


@pytest.mark.parametrize("isa", TWINS)
def test_normals_everywhere(isa: str) -> None:
    """All 2^23 draws; of the slow twin those beside a step of the staircase."""
    staircase = normal_staircase("trunc")
    m = np.arange(1 << 23, dtype=np.uint32)
    if isa == "naive":
        steps = np.flatnonzero(np.diff(staircase))
        m = np.concatenate([steps, steps + 1, m[::65537]]).astype(np.uint32)
    assert np.array_equal(kernels.normals(m, isa=isa), staircase[m])


@pytest.mark.parametrize("isa", TWINS)
def test_draws(isa: str) -> None:
    rng = np.random.default_rng(1)
    assert kernels.draw((1, 2), 7, 0, isa=isa).size == 0
    for count in [1, 2, 3, 15, 16, 17, 64, 511, 512, 513, 1025, 2000]:
        words = tuple(int(word) for word in rng.integers(0, 2**32, 2))
        for start in [0, int(rng.integers(2**30)), 2**30 - count, 2**32 - count]:
            expected = oracle.normals(words, np.arange(start, start + count), "trunc")
            assert np.array_equal(kernels.draw(words, start, count, isa=isa), expected)


@pytest.mark.parametrize("isa", TWINS)
def test_products_of_every_width(isa: str) -> None:
    rng = np.random.default_rng(2)
    for width in [*range(1, 301), 511, 1040, 1041, 4097]:
        rows, members = int(rng.integers(1, 80)), int(rng.integers(1, 14))
        w, x = numbers(rng, rows, width), numbers(rng, members, width)
        expected = x.astype(np.int64) @ w.astype(np.int64).T
        assert np.array_equal(kernels.products(w, x, isa=isa), expected), width


@pytest.mark.parametrize("isa", TWINS)
@pytest.mark.parametrize(("left", "right"), [(127, 127), (-127, 127), (-127, -127), (-128, -128), (127, -128)])
def test_the_largest_sums(isa: str, left: int, right: int) -> None:
    """65536 inputs, as the widest model has: sums of 2^30, and on the way twice that where weights are shifted."""
    for width in (2, 4, 5, 65535, 65536):
        w, x = np.full((3, width), left, np.int8), np.full((2, width), right, np.int8)
        assert np.array_equal(kernels.products(w, x, isa=isa), np.full((2, 3), left * right * width))


@pytest.mark.parametrize("isa", TWINS)
def test_perturbed_products_of_every_width_and_shift(isa: str) -> None:
    rng = np.random.default_rng(3)
    for width in [*range(1, 301), 1040, 1041, 4097]:
        rows, members = int(rng.integers(1, 80)), int(rng.integers(1, 14))
        w, x = numbers(rng, rows, width), numbers(rng, members, width)
        rank, shift = width % 4, width % 32
        b, a = (numbers(rng, members, rank, n, bound=86) for n in (width, rows)) if rank else (None, None)
        result = kernels.matmul(w, x, b, a, shift=shift, isa=isa)
        assert np.array_equal(result, expected_matmul(w, x, b, a, shift)), (width, rank, shift)


@pytest.mark.parametrize("isa", TWINS)
@pytest.mark.parametrize("rank", [1, 2, 40])
def test_the_perturbation_wraps_at_32_bits(isa: str, rank: int) -> None:
    """A (B^T x) beyond int32, alone and together with W x: what int32 arrays do, these do."""
    rng = np.random.default_rng(4)
    width, rows, members = 4097, 33, 3
    x = np.full((members, width), 127, np.int8)
    w = numbers(rng, rows, width)
    b = np.full((members, rank, width), 86, np.int8)
    a = rng.integers(-86, 87, (members, rank, rows)).astype(np.int8)
    assert abs(86 * 86 * 127 * width * rank) > 2**31
    for shift in range(32):
        result = kernels.matmul(w, x, b, a, shift=shift, isa=isa)
        assert np.array_equal(result, expected_matmul(w, x, b, a, shift)), shift


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 7, 9, 10, 16, 36, 100, 255, 256, 289, 1000, 1024, 65536])
def test_every_quotient(isa: str, inputs: int) -> None:
    """The division by 16 isqrt(inputs), done in float or as a shift, on both sides of every multiple of the divisor.

    W x is put together from one-digit inputs: 127 high + low, and zeros.
    """
    divisor = 16 * math.isqrt(inputs)
    edges = np.concatenate([divisor * np.arange(-130, 131) + step for step in (-1, 0, 1)])
    edges = edges[np.abs(edges) <= 127 * 127 * (inputs - 1) + (127 if inputs == 1 else 0)]
    x = np.zeros((len(edges), inputs), np.int8)
    high = np.trunc(edges / 127).astype(np.int64) if inputs > 1 else np.zeros_like(edges)
    x[:, 0] = edges - 127 * high
    for column in range(1, inputs):
        digit = np.clip(high, -127, 127)
        if not digit.any():
            break
        x[:, column] = digit
        high = high - digit
    w = np.full((1, inputs), 127, np.int8)
    w[0, 0] = 1
    assert np.array_equal(kernels.products(w, x, isa=isa)[:, 0], edges)
    assert np.array_equal(kernels.matmul(w, x, isa=isa)[:, 0], np.clip(edges // divisor, -127, 127))


@pytest.mark.parametrize("isa", TWINS)
def test_norms_of_every_width(isa: str) -> None:
    rng = np.random.default_rng(5)
    for width in range(1, 401):
        for bound in (127, 3, 1):
            x, w = numbers(rng, width, bound=bound), numbers(rng, width)
            if width % 5 == 0:
                x[rng.random(width) < 0.9] = 0  # a mean below 1
            assert np.array_equal(kernels.norm(x, w, isa=isa), oracle.norm(x.astype(np.int64), w.astype(np.int64)))


@pytest.mark.parametrize("isa", TWINS)
def test_norms_of_every_divisor(isa: str) -> None:
    """All values of x under each mean from 0 to 126, tuned by what follows them, and 127; some weights of each."""
    values = np.arange(-127, 128)
    for d in range(127):
        total, rest = np.abs(values).sum(), 0 if d < 64 else 127
        # The fewest further entries, all 0 or all 127, that bring the mean to d.
        more = total // (d + 1) + 1 - 255 if rest == 0 else -((total - 255 * d) // (127 - d))
        x = np.concatenate([values, np.full(max(more, 0), rest)]).astype(np.int8)
        assert np.abs(x.astype(np.int64)).sum() // len(x) == d
        for weight in (-127, -126, -85, -17, -16, -3, -1, 0, 1, 2, 16, 18, 64, 101, 127):
            w = np.full(len(x), weight, np.int8)
            assert np.array_equal(kernels.norm(x, w, isa=isa), oracle.norm(x.astype(np.int64), w.astype(np.int64)))
    x = np.where(np.arange(255) % 2, 127, -127).astype(np.int8)
    w = values.astype(np.int8)
    assert np.array_equal(kernels.norm(x, w, isa=isa), oracle.norm(x.astype(np.int64), w.astype(np.int64)))


@pytest.mark.parametrize("isa", TWINS)
def test_every_gate(isa: str) -> None:
    """All pairs of a gate and a state, then sums of every width."""
    values = np.arange(-127, 128, dtype=np.int8)
    zero = np.zeros(255, np.int8)
    for f in values:
        gates, g = kernels.gate(np.full(255, f), zero, zero, values, isa=isa)
        assert (gates == f).all()
        assert np.array_equal(g, ((int(f) + 127) * values.astype(np.int64)) >> 8)
    rng = np.random.default_rng(6)
    for width in range(1, 301):
        fa, fb, bf, h = (numbers(rng, width) for _ in range(4))
        f = np.clip(fa.astype(np.int64) + fb + bf, -127, 127)
        gates, g = kernels.gate(fa, fb, bf, h, isa=isa)
        assert np.array_equal(gates, f) and np.array_equal(g, ((f + 127) * h) >> 8)


@pytest.mark.parametrize("isa", TWINS)
def test_recurrences(isa: str) -> None:
    rng = np.random.default_rng(7)
    for width in [*range(1, 301), *[16384] * 20]:
        ca, cb, bh, fa, h, x = (numbers(rng, width) for _ in range(6))
        if width == 16384:
            ca, fa, h = (rng.integers(-127, 128, width).astype(np.int8) for _ in range(3))
            cb, bh = np.zeros_like(ca), np.zeros_like(ca)
        c = np.clip(ca.astype(np.int64) + cb + bh, -127, 127)
        state = h + (((fa.astype(np.int64) + 127) * (c - h)) >> 8)
        new_h, new_x = kernels.recur(ca, cb, bh, fa, h, x, isa=isa)
        assert np.array_equal(new_h, state) and np.array_equal(new_x, np.clip(x + state, -127, 127))


@pytest.mark.parametrize("isa", TWINS)
def test_log_likelihoods_of_every_vocabulary(isa: str) -> None:
    rng = np.random.default_rng(8)
    for vocab in range(1, 257):
        for logits in (numbers(rng, vocab), numbers(rng, vocab), np.full(vocab, rng.choice([-127, 0, 127]), np.int8)):
            for target in {0, vocab - 1, int(rng.integers(vocab))}:
                assert kernels.log_likelihood(logits, target, isa=isa) == oracle.log_likelihood(logits, target)


@pytest.mark.parametrize("isa", TWINS)
def test_moves(isa: str) -> None:
    """Votes on both sides of the bound, zero votes, no bound, votes far beyond 32 bits, entries at both ends."""
    rng = np.random.default_rng(9)
    for size in [*range(301), 5000]:
        bound = int(rng.choice([0, 1, 15, 16, 17, 16 * 400, 16 * 400 + 1, 2**40]))
        z = rng.integers(-800, 801, size) * int(rng.choice([1, 2**32]))
        z[rng.random(size) < 0.2] = rng.choice([0, bound // 16, -(bound // 16), -(-bound // 16)])
        old = numbers(rng, size) if size else np.zeros(0, np.int8)
        expected = oracle.move(old, z, bound)
        assert np.array_equal(kernels.move(z, old, bound, isa=isa), expected)


def test_tables_equal_the_definition() -> None:
    """EXP2 everywhere; LOG2 on both sides of every step."""
    assert [kernels.exp2_entry(i) for i in range(256)] == EXP2
    for step in LOG2_STEPS:
        for s in (step - 1, step):
            assert s < 16 or kernels.log2_table(s) == bisect_right(LOG2_STEPS, s)
