"""Decorrelated inputs: inverse roots against float64, and votes whose variance is right if they are noise."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config
from nanoegg_mlx.core.activations import Moments
from nanoegg_mlx.core.decorrelation import decorrelated, inverse_roots
from tests import oracle_activations as twin


def correlated(rng: np.random.Generator, samples: int, n: int) -> np.ndarray:
    """Inputs (samples, n) in [-127, 127] with means, and of very different sizes."""
    mixed = rng.normal(size=(samples, n)) @ rng.normal(size=(n, n)) * rng.uniform(0.1, 8, n) + rng.normal(0, 20, n)
    return np.clip(mixed, -127, 127).astype(np.int64)


@pytest.mark.parametrize("n", [1, 2, 7, 63, 64])
@pytest.mark.parametrize("samples", [1, 50, 20000])
def test_inverse_roots(n: int, samples: int) -> None:
    X = correlated(np.random.default_rng([n, samples]), samples, n)
    C = X.T @ X
    (G,), (V,) = inverse_roots(C[None])
    A = C * n / np.trace(C)
    shrunk = A + np.eye(n) / 8
    w, U = np.linalg.eigh(shrunk / np.abs(shrunk).sum(axis=1).max())
    assert np.abs(G - 2**10 * (U / np.sqrt(w)) @ U.T).max() < 0.003 * G.max()
    # A is rounded down to a multiple of 2^-20, and A G to one of 2^-8.
    rows = np.abs(G).sum(axis=0)
    assert (np.abs(V - 2**8 * np.diag(G.T @ A @ G)) <= rows + rows.max() * rows / 2**12 + 1).all()
    expected = twin.inverse_root(C)
    assert np.array_equal(G, expected[0]) and V.tolist() == expected[1]


def test_inputs_that_are_always_zero_and_huge_sums() -> None:
    zeros = np.zeros((3, 3), np.int64)
    largest = np.full((3, 3), 2**62 // 3)
    G, V = inverse_roots(np.stack([zeros, largest]))
    assert np.array_equal(G[0], np.diag([G[0, 0, 0]] * 3)) and G[0, 0, 0] > 0 and not V[0].any()
    assert np.array_equal(G[1], twin.inverse_root(largest)[0])


def test_votes_that_are_noise_have_the_variance_s() -> None:
    """Votes of many outputs on the same inputs, from fair coins and credits of all sizes."""
    rng = np.random.default_rng(1)
    config = Config(perturb="activations", n_layer=1, n_embd=16, decorrelate=True, head_rule="perturb", vocab_size=256)
    samples, D, V = 4000, 16, 256
    y = correlated(rng, samples, D)
    w = np.clip(rng.standard_cauchy(samples) * 5, -127, 127).astype(np.int64)
    Z = (w[:, None] * rng.choice([-1, 1], (samples, V))).T @ y
    S = ((w[:, None] * y) ** 2).sum(axis=0)
    padded = np.pad(y.T @ y, [(0, 0), (0, 48)])
    names = ("att.Wf", "att.Uf", "att.Wh", "att.Uh", "mlp.0.weight", "mlp.1.weight")
    inputs = {"y": D, "last": D, "g": D, "z": D, "hidden": 4 * D}
    sizes = dict(zip(names, (D, D, D, D, D, 4 * D), strict=True))
    sums = Moments(
        {f"blocks.{name}": mx.zeros((1, 4, n), dtype=mx.int64) for name, n in sizes.items()} | {"head": mx.array(Z)},
        {f"blocks.{name}": mx.zeros((1, n), dtype=mx.int64) for name, n in sizes.items()} | {"head": mx.array(S)},
        {name: mx.zeros((1, n, 64), dtype=mx.int64) for name, n in inputs.items()} | {"head": mx.array(padded)},
    )
    moments = decorrelated(sums, config)
    after, variances = np.array(moments.Z["head"], np.float64), np.array(moments.S["head"], np.float64)
    assert np.allclose((after**2).mean(axis=0) / variances, 1, atol=0.35)
    assert abs(np.mean(after**2 / variances) - 1) < 0.1
    before, now = np.corrcoef(Z.T), np.corrcoef(after.T)
    off = ~np.eye(D, dtype=bool)
    assert np.abs(now[off]).mean() < 0.5 * np.abs(before[off]).mean()
    assert not any(np.array(value).any() for name, value in moments.Z.items() if name != "head")
    assert not moments.C
