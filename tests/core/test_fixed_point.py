"""The integer operations against plain Python integers, at their extremes and where float sums would round."""

from __future__ import annotations

import math
from fractions import Fraction

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoegg_mlx import Config
from nanoegg_mlx.core.fixed_point import EXP2, LOG2_STEPS, clip, exact_matmul, floor_div
from nanoegg_mlx.core.model import matmul, norm
from nanoegg_mlx.core.noise import LowRank, perturb_embedding, perturb_product, perturb_vector
from nanoegg_mlx.core.score import code_lengths, log_likelihood
from nanoegg_mlx.core.update import alpha_at, fitness, move, threshold_at, vote_dtype, votes
from tests.traces import GOLDEN

INT8 = st.integers(-127, 127)
NOISE = st.integers(-86, 86)
settings.register_profile("exact", deadline=None, max_examples=60)
settings.load_profile("exact")


def python_clip(x: int) -> int:
    return min(max(x, -127), 127)


def int32(values: object) -> mx.array:
    return mx.array(values, dtype=mx.int32)


@given(st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=8), st.integers(1, 5000))
def test_floor_div_by_a_number(values: list[int], divisor: int) -> None:
    assert floor_div(int32(values), divisor).tolist() == [value // divisor for value in values]


@given(st.lists(st.tuples(st.integers(-(2**30), 2**30), st.integers(1, 5000)), min_size=4, max_size=4))
def test_floor_div_by_an_array(pairs: list[tuple[int, int]]) -> None:
    values, divisors = zip(*pairs, strict=True)
    expected = [value // divisor for value, divisor in pairs]
    assert floor_div(int32(values), int32(divisors)).tolist() == expected


def test_clip_never_gives_minus_128() -> None:
    values = [-(2**31), -129, -128, -127, 0, 127, 128, 2**31 - 1]
    assert clip(int32(values)).tolist() == [python_clip(value) for value in values]


@pytest.mark.parametrize("width", [1, 1039, 1040, 1041, 2080, 2081, 4096])
@pytest.mark.parametrize("kind", ["largest", "alternating", "random"])
def test_exact_matmul(width: int, kind: str) -> None:
    rng = np.random.default_rng(width)
    a = {
        "largest": np.full((3, width), 127),
        "alternating": np.resize([127, -127], (3, width)),
        "random": rng.integers(-127, 128, (3, width)),
    }[kind]
    b = np.full((width, 2), 127) if kind != "random" else rng.integers(-127, 128, (width, 2))
    a[0, -1] -= 1  # an odd total, which a float32 above 2^24 cannot represent
    product = exact_matmul(mx.array(a.astype(np.int8)), mx.array(b.astype(np.int8)), 127 * 127)
    assert np.array_equal(np.array(product), a @ b)


@st.composite
def perturbed_matrix(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    o, n, rank = 3, draw(st.sampled_from([1, 2, 7, 16])), draw(st.sampled_from([1, 3]))
    table = lambda elements, *shape: np.array(  # noqa: E731
        draw(st.lists(elements, min_size=math.prod(shape), max_size=math.prod(shape)))
    ).reshape(shape)
    return table(INT8, o, n), table(INT8, n), table(NOISE, rank, o), table(NOISE, rank, n), draw(st.integers(0, 31))


@given(perturbed_matrix())
def test_matmul(case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]) -> None:
    W, x, A, B, shift = case
    o, n = W.shape
    E = LowRank(mx.array(A.astype(np.int8)), mx.array(B.astype(np.int8)))
    expected = []
    for i in range(o):
        y = sum(int(W[i, j]) * int(x[j]) for j in range(n))
        plain = python_clip(y // (16 * math.isqrt(n)))
        term = sum(int(A[r, i]) * sum(int(B[r, j]) * int(x[j]) for j in range(n)) for r in range(len(A)))
        expected.append((plain, python_clip((y + (term >> shift)) // (16 * math.isqrt(n)))))
    weights = mx.array(W.astype(np.int8))
    assert matmul(weights, int32(x)).tolist() == [plain for plain, _ in expected]
    perturbed_matmul = matmul(weights, int32(x), lambda y, x: perturb_product(y, x, E, shift))
    assert perturbed_matmul.tolist() == [perturbed for _, perturbed in expected]


@given(st.lists(INT8, min_size=6, max_size=6), st.lists(INT8, min_size=6, max_size=6))
def test_norm(x: list[int], weight: list[int]) -> None:
    d = max(sum(map(abs, x)), 1) // len(x)
    if d:
        expected = [python_clip(a * w // d) for a, w in zip(x, weight, strict=True)]
    else:
        expected = [-1 if a * w == 0 else -2 for a, w in zip(x, weight, strict=True)]
    assert norm(int32(x), int32(weight)).tolist() == expected


@pytest.mark.parametrize("x", [[0] * 6, [1, -1, 1, 0, 0, 0], [127] * 6, [-127] * 6, [5, 0, 0, 0, 0, 0]])
@pytest.mark.parametrize("weight", [[16] * 6, [127, -127, 0, 1, -1, 16]])
def test_norm_at_its_extremes(x: list[int], weight: list[int]) -> None:
    test_norm.hypothesis.inner_test(x, weight)


@given(st.lists(INT8, min_size=5, max_size=5), st.lists(st.integers(-7396, 7396), min_size=5, max_size=5))
def test_vector(v: list[int], E: list[int]) -> None:
    for shift in (0, 8, 31):
        expected = [python_clip(a + (e >> shift)) for a, e in zip(v, E, strict=True)]
        assert perturb_vector(int32(v), int32(E), shift).tolist() == expected


@pytest.mark.parametrize("rank", [1, 2])
def test_embedding(rank: int) -> None:
    rng = np.random.default_rng(rank)
    W, A, B = rng.integers(-127, 128, (9, 5)), rng.integers(-86, 87, (rank, 9)), rng.integers(-86, 87, (rank, 5))
    E = LowRank(mx.array(A.astype(np.int8)), mx.array(B.astype(np.int8)))
    for token in range(9):
        row = perturb_embedding(int32(W[token].tolist()), mx.array(token), E, 5)
        assert np.array_equal(np.array(row), np.clip(W[token] + ((B.T @ A[:, token]) >> 5), -127, 127))


def test_exp2_and_log2_are_the_recorded_staircases() -> None:
    with np.load(GOLDEN / "units.npz") as units:
        assert units["exp2_table"].tolist() == EXP2
        values, breakpoints = units["log2_values"], units["log2_breakpoints"]
        above = (values > 0) & (breakpoints <= 256 * EXP2[-1])
        assert above.sum() > 300
        steps = np.array(LOG2_STEPS)
        assert np.array_equal(np.searchsorted(steps, breakpoints[above], side="right"), values[above])
        assert np.array_equal(np.searchsorted(steps, breakpoints[above] - 1, side="right")[1:], values[above][:-1])
        for logits, target, value in zip(units["ll/logits"], units["ll/targets"], units["ll/value"], strict=True):
            assert log_likelihood(int32(logits), mx.array(int(target))).item() == value


def test_code_lengths_are_normalised() -> None:
    logits = np.random.default_rng(0).integers(-127, 128, (4, 256)).astype(np.int8)
    every = np.array([code_lengths(logits, np.full(4, target, np.uint8)) for target in range(256)])
    assert np.abs(np.exp2(-every).sum(axis=0) - 1).max() < 1e-12


@pytest.mark.parametrize("use_clt", [True, False])
@pytest.mark.parametrize("largest", [1, 127])
@pytest.mark.parametrize("dtype", [mx.int32, mx.int64])
def test_votes(use_clt: bool, largest: int, dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(largest)
    pairs, layers, rank, o, n = 2500, 2, 2, 3, 4
    A, B = rng.integers(-86, 87, (pairs, layers, rank, o)), rng.integers(-86, 87, (pairs, layers, rank, n))
    A[:, 0], B[:, 0] = 86, 86
    E = rng.integers(-7396, 7397, (pairs, layers, n))
    weights = rng.integers(-largest, largest + 1, pairs)
    weights[: pairs - 3] = largest
    fit = mx.array(weights.astype(np.int8))
    signs = (lambda x: x) if use_clt else np.sign
    low_rank = LowRank(mx.array(A.astype(np.int8)), mx.array(B.astype(np.int8)))
    expected = np.einsum("p,plro,plrn->lon", weights, signs(A), signs(B))
    if np.abs(expected).max() < 2**31 or dtype == mx.int64:
        assert np.array_equal(np.array(votes(low_rank, fit, use_clt, dtype)), expected)
    expected = np.einsum("p,pln->ln", weights, signs(E))
    if np.abs(expected).max() < 2**31 or dtype == mx.int64:
        assert np.array_equal(np.array(votes(mx.array(E.astype(np.int32)), fit, use_clt, dtype)), expected)


def test_votes_are_wide_where_they_could_overflow() -> None:
    assert vote_dtype(Config(population=262144)) == mx.int32
    assert vote_dtype(Config(population=2**20)) == mx.int64
    assert vote_dtype(Config(population=8192, fast_fitness=False)) == mx.int64


@given(
    st.lists(INT8, min_size=4, max_size=4),
    st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=4, max_size=4),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_move(parameter: list[int], Z: list[int], bound: int, fast: bool) -> None:
    expected = []
    for value, vote in zip(parameter, Z, strict=True):
        vote = vote if fast else vote >> 4
        step = 0 if 16 * abs(vote) < bound else 1 if vote > 0 else -1
        expected.append(python_clip(value + step))
    assert move(mx.array(parameter, dtype=mx.int8), int32(Z), bound, fast).tolist() == expected


def test_move_at_the_bound() -> None:
    parameter = mx.array([127, -127, 5, 5, 5, 5], dtype=mx.int8)
    Z = int32([1000, -1000, 0, 10, -10, 9])
    assert move(parameter, Z, 0, True).tolist() == [127, -127, 4, 6, 4, 6]
    assert move(parameter, Z, 160, True).tolist() == [127, -127, 5, 6, 4, 5]
    assert move(parameter, Z, 161, True).tolist() == [127, -127, 5, 5, 5, 5]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6))
def test_fitness(scores: list[int]) -> None:
    differences = [a - b for a, b in zip(scores[0::2], scores[1::2], strict=True)]
    array = np.array(scores, np.int32)
    assert fitness(array, True).tolist() == [(d > 0) - (d < 0) for d in differences]
    rms = max(math.isqrt(sum(d * d for d in differences) // 3), 1)
    expected = [python_clip(16 * d // rms) for d in differences]
    assert fitness(array, False).tolist() == expected


def test_alpha_and_threshold() -> None:
    decaying = Config(alpha=4.0, alpha_decay_timestep=4)
    assert [alpha_at(decaying, e) for e in (0, 4)] == [1.0, 1 / 16]
    assert [threshold_at(decaying, e) for e in range(12)] == [0, 20, 25, 27, 29, 31, 32, 33, 34, 34, 35, 36]
    assert [threshold_at(Config(alpha=a), 7) for a in (1.0, 0.5, 0.1, 0.05)] == [0, 10, 26, 31]
    # Below float64's resolution at 1, the lower tail still rises.
    assert threshold_at(Config(alpha=1e-20), 0) > threshold_at(Config(alpha=1e-15), 0) > 120


def test_isqrt_is_what_the_widths_are_divided_by() -> None:
    W, x = mx.full((1, 7), 127, dtype=mx.int8), int32([127] * 7)
    assert matmul(W, x).item() == 127
    assert matmul(W, int32([-1] * 7)).item() == math.floor(Fraction(-127 * 7, 16 * 2))
