"""Fixed-point arithmetic: clip, exact floor division, exact integer matmul on float hardware, EXP2 and LOG2.

"Q4" is fixed point with 4 fractional bits: 16 is 1.0. MLX has no integer matmul, so int8 products are summed in
float32. That is exact, in any order, while no partial sum can reach 2^24: a float32 has a 24-bit significand (spec
section 10). Wider inputs are summed in slices, which are added in int32. TF32 is exact here too, since it rounds the
factors only, and int8 fits its 11 bits; float16 and bfloat16 also round the sums. EXP2 and LOG2 are staircases. Their
steps are computed with Python's unbounded integers, without any float.
"""

from __future__ import annotations

import math

import mlx.core as mx

ONE = 16  # 1.0 in Q4
MAX_INT8 = 127

_EXACT_IN_FLOAT32 = 1 << 24


def clip(x: mx.array) -> mx.array:
    """min(max(x, -127), 127), elementwise; shape and dtype of `x`. Note that -128 never occurs."""
    return mx.clip(x, -MAX_INT8, MAX_INT8)


def floor_div(x: mx.array, divisor: int | mx.array) -> mx.array:
    """Exact floor(x / divisor), elementwise.

    The quotient is corrected by its remainder, so it does not matter whether a device's integer division
    truncates or floors. A power of two known in advance is an arithmetic shift.

    Args:
        x: int32, any shape.
        divisor: a positive int, or an int32 array of positive values that broadcasts against `x`.

    Returns:
        int32, the broadcast shape.
    """
    if isinstance(divisor, int) and divisor & (divisor - 1) == 0:
        return x >> (divisor.bit_length() - 1)
    quotient = x // divisor
    return quotient - (x - quotient * divisor < 0).astype(mx.int32)


def exact_matmul(a: mx.array, b: mx.array, max_product: int) -> mx.array:
    """Exact integer matrix product on float hardware.

    Args:
        a: (..., K) integers, of any dtype that holds them exactly.
        b: (K, M) integers, likewise.
        max_product: a bound on |a[i, k] * b[k, j]|; K is cut into slices so that no sum reaches 2^24.

    Returns:
        (..., M) int32.
    """
    width = a.shape[-1]
    limit = (_EXACT_IN_FLOAT32 - 1) // max_product
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    total = mx.matmul(a[..., :limit], b[:limit]).astype(mx.int32)
    for k in range(limit, width, limit):
        total = total + mx.matmul(a[..., k : k + limit], b[k : k + limit]).astype(mx.int32)
    return total


def _root16(x: int) -> int:
    """floor(x ** (1/16)): four nested integer square roots."""
    for _ in range(4):
        x = math.isqrt(x)
    return x


def exp2_table() -> list[int]:
    """EXP2[i] = trunc(16 * 2^(i/16)) for i in 0..255 (spec section 5)."""
    return [_root16(1 << (64 + i)) for i in range(256)]


def log2_steps(largest: int) -> list[int]:
    """The sums s at which LOG2(s) = trunc(16 * log2(s / 16)) rises by one, 16 <= s <= largest (spec section 5).

    Entry v is the smallest s with LOG2(s) >= v + 1, that is ceil(2^((64 + v + 1) / 16)), so LOG2(s) is the
    number of entries <= s. A sum of EXP2 is at least 16, so steps below 16 are unnecessary.
    """
    steps: list[int] = []
    while True:
        exponent = 64 + len(steps) + 1
        root = _root16(1 << exponent)
        step = root if root**16 == 1 << exponent else root + 1
        if step > largest:
            return steps
        steps.append(step)


def pow2_table() -> list[int]:
    """POW2[k] = round(8192 * 2^(-k/16)) for k in 0..255, ties to even (docs/activations.md).

    root is floor(2 * 8192 * 2^(-k/16)). The only tie, 1/2 at k = 224, rounds to 0.
    """
    roots = [_root16(1 << (14 * 16 - k)) if k <= 14 * 16 else 0 for k in range(256)]
    return [(root + 1) // 2 if k != 224 else 0 for k, root in enumerate(roots)]


EXP2 = exp2_table()
POW2 = pow2_table()
LOG2_STEPS = log2_steps(256 * EXP2[-1])
