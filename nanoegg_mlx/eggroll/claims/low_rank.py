"""Low rank against full rank: bias and Monte Carlo noise of the update, measured apart.

The claim of O(1/r) is about expectations. Let g_r = E[E f(W + sigma E)] / sigma be the expected update with noise of
rank r, and g the Gaussian one. Entries of A B^T / sqrt(r) have the first three moments of the Gaussian. The matrix is
a mean of r independent matrices times sqrt(r), so its fourth cumulant is exactly that of rank 1 over r. Taylor's series
of f meets the fourth moments first in its cubic term: g_r - g = sigma^2 / 6 (f''' : fourth cumulant) / r + ...; the
next terms are of order 1/r^2. For a quadratic f there is no bias at all. For any f the update of a finite population is
noisy by O(1 / sqrt(N)), which hides the bias unless N is in the millions. So bias and noise are measured apart.

(In the paper's words: the update f E uses the score of a Gaussian for noise that is Gaussian only in the limit.)

The bias has a closed form for a layer f(W) = sum_i c_i tanh(w_i x), w_i the rows of W. Row i depends on E only through
z = e_i^T E x / |x| = sum_k A_ik (B_k x / |x|) / sqrt(r), which, given A, is normal with variance q = |A_i|^2 / r: a
chi-squared variable of r degrees, over r. By Stein's identity the expected update is, along x / |x| and zero across,

    g_r,i = c_i |x| E_q[ q E_xi[ sech^2(s_i + sigma |x| sqrt(q) xi) ] ],    s_i = w_i x,  xi standard normal,

a two-dimensional integral that quadrature computes to many digits; full rank is q = 1. The same layer is then sampled
with the library's own noise as a check of the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from nanoegg_mlx.eggroll import draw_keys
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import estimates, optional, rank_name

ByRank = dict[int | None, list[float]]
"""Rank (None for full) -> one value for each seed."""


def expected_update(s: np.ndarray, c: np.ndarray, length: float, sigma: float, rank: int | None) -> np.ndarray:
    """g_r of the layer above along x / |x|: float64 (m,).

    Args:
        s: (m,), w_i x.
        c: (m,).
        length: |x|.
        rank: None for full rank.
    """
    xi, xi_weights = np.polynomial.hermite_e.hermegauss(120)
    xi_weights = xi_weights / xi_weights.sum()
    if rank is None:
        q, q_weights = np.ones(1), np.ones(1)
    else:
        nodes, q_weights = optional("scipy.special").roots_genlaguerre(80, rank / 2 - 1)
        q, q_weights = 2 * nodes / rank, q_weights / q_weights.sum()
    inner = np.cosh(s[:, None, None] + sigma * length * np.sqrt(q)[:, None] * xi) ** -2.0 @ xi_weights
    return c * length * (inner @ (q * q_weights))


def slope(ranks: Sequence[int], bias: Sequence[float]) -> float:
    """The slope of log bias over log rank, by least squares."""
    return float(np.polyfit(np.log(ranks), np.log(bias), 1)[0])


class Layer:
    """f(W) = sum_i c_i tanh(w_i x) with W (m, n), x (n,) and c (m,) drawn from a seed."""

    def __init__(self, seed: int, shape: tuple[int, int], sigma: float) -> None:
        m, n = shape
        random = np.random.default_rng(seed)
        self.seed, self.shape, self.sigma = seed, shape, sigma
        self.W, self.x, self.c = random.normal(size=(m, n)) / n**0.5, random.normal(size=n), random.normal(size=m)
        self.length = float(np.linalg.norm(self.x))
        self.along = self.x / self.length

    def expected(self, rank: int | None) -> np.ndarray:
        """The expected update along x / |x|: float64 (m,)."""
        return expected_update(self.W @ self.x, self.c, self.length, self.sigma, rank)

    def estimate(self, step: int, leaf: int, pairs: int, rank: int | None) -> np.ndarray:
        """The update of one population of antithetic pairs, with the library's own noise: float32 (m, n).

        Args:
            step, leaf: of the noise; other numbers give independent noise.
        """
        W, x, c = (mx.array(value, mx.float32) for value in (self.W, self.x, self.c))
        keys = draw_keys(self.seed, step, leaf, range(pairs))[None]
        return np.array(estimates(lambda W: mx.sum(c * mx.tanh(W @ x)), W[None], keys, self.sigma, rank)[0][0])

    def sampled(self, rank: int | None, pairs: int) -> np.ndarray:
        """The mean of many updates along x / |x|: float64 (m,)."""
        chunk = min(pairs, 50_000)
        total = np.zeros(self.shape)
        for part in range(pairs // chunk):
            total += self.estimate(part, rank or 0, chunk, rank).astype(np.float64)
        return total / (pairs // chunk) @ self.along


@dataclass
class Measured:
    """The measurements: by rank, one value for each layer."""

    relative: ByRank = field(default_factory=dict)
    """|g_r - g| / |g|, exact."""
    angle: ByRank = field(default_factory=dict)
    """1 - cosine of g_r and g, exact."""
    found: ByRank = field(default_factory=dict)
    """The bias along one direction, sampled, over |g|. Signed, since a sampled norm is never zero."""
    predicted: ByRank = field(default_factory=dict)
    """The same, exact."""
    noise: ByRank = field(default_factory=dict)
    """The error of one update of a finite population, over |g|."""
    to_full: ByRank = field(default_factory=dict)
    """Cosine of such an update and an independent one of full rank."""
    to_gradient: ByRank = field(default_factory=dict)
    """Cosine of such an update and g."""

    def add(self, name: str, rank: int | None, value: float | np.floating) -> None:
        """Appends a value to the list of a rank in the measurement called `name`."""
        getattr(self, name).setdefault(rank, []).append(float(value))

    def sampling_error(self, rank: int | None) -> float:
        """Standard error of the sampled bias against the exact one."""
        return Spread.of(np.subtract(self.found[rank], self.predicted[rank])).error


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def measure_bias(measured: Measured, layer: Layer, ranks: Sequence[int], sampled: Sequence[int], pairs: int) -> None:
    """The bias of the expected update, exact for `ranks` and sampled for some of them and full rank."""
    full = layer.expected(None)
    size = np.linalg.norm(full)
    biases = {rank: layer.expected(rank) - full for rank in ranks}
    for rank, bias in biases.items():
        measured.add("relative", rank, np.linalg.norm(bias) / size)
        measured.add("angle", rank, 1 - full @ (full + bias) / size / np.linalg.norm(full + bias))
    # The direction of the largest bias: the noise of the other directions does not enter.
    direction = biases[ranks[0]] / np.linalg.norm(biases[ranks[0]])
    for of in (*sampled, None):
        exact = biases[of] if of else np.zeros(len(full))
        measured.add("found", of, (layer.sampled(of, pairs) - full) @ direction / size)
        measured.add("predicted", of, exact @ direction / size)


def measure_noise(measured: Measured, layer: Layer, ranks: Sequence[int], population: int) -> None:
    """The error of one update of a finite population, for each rank and for full rank."""

    def update(step: int, rank: int | None) -> np.ndarray:
        # Each rank has its own leaf number, so its noise is independent.
        return layer.estimate(step, 1000 + (rank or 0), population // 2, rank).astype(np.float64).ravel()

    truth = np.outer(layer.expected(None), layer.along).ravel()
    full, again = update(1 << 20, None), update(1 << 21, None)
    for rank in (None, *ranks):
        one = full if rank is None else update(1 << 20, rank)
        # Full rank is compared with a second update of full rank.
        measured.add("to_full", rank, cosine(one, again if rank is None else full))
        measured.add("to_gradient", rank, cosine(one, truth))
        measured.add("noise", rank, np.linalg.norm(one - truth) / np.linalg.norm(truth))


def row(measured: Measured, rank: int | None, pairs: int, population: int) -> dict[str, Any]:
    """The table's row of a rank."""
    checked = "-"
    if rank in measured.found:
        found, predicted = measured.found[rank], measured.predicted[rank]
        error = measured.sampling_error(rank)
        checked = f"{np.mean(predicted):.4f} / {np.mean(found):.4f} ± {error:.4f} (s.e.)"
    return {
        "rank": rank_name(rank),
        "bias, exact": Spread.of(measured.relative[rank]) if rank else 0.0,
        "bias x rank": float(np.mean(measured.relative[rank]) * rank) if rank else "-",
        "1 - cosine of expected updates": Spread.of(measured.angle[rank]) if rank else 0.0,
        f"bias along one direction, exact / sampled ({2 * pairs:,} members)": checked,
        f"error of one update, N = {population}": Spread.of(measured.noise[rank]),
        "its cosine to a full-rank update": Spread.of(measured.to_full[rank]),
        "its cosine to the expected update": Spread.of(measured.to_gradient[rank]),
    }


def low_rank(
    seeds: int = 10,
    ranks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    sampled: Sequence[int] = (1, 2, 4, 8),
    pairs: int = 200_000,
    population: int = 1024,
    shape: tuple[int, int] = (4, 6),
    sigma: float = 0.3,
) -> Result:
    """Bias of the expected update over the rank, its check by sampling, and the noise of a finite population.

    Args:
        seeds: layers (W, x, c), each with different samples.
        ranks: their bias is computed, and the slope is fitted over all of them.
        sampled: the ranks among them whose bias is measured as well.
        pairs: antithetic pairs for each seed and rank of the measurement.
        population: of the finite update.
    """
    measured = Measured()
    for seed in range(seeds):
        layer = Layer(seed, shape, sigma)
        measure_bias(measured, layer, ranks, sampled, pairs)
        measure_noise(measured, layer, ranks, population)
    relative, noise = measured.relative, measured.noise
    fitted, last = (
        Spread.of(slope(of, [relative[rank][seed] for rank in of]) for seed in range(seeds))
        for of in (ranks, ranks[-2:])
    )
    ratio = np.mean(noise[ranks[0]]) / np.mean(noise[None])
    return Result(
        title="Low rank against full rank: the update",
        rows=[row(measured, rank, pairs, population) for rank in (*ranks, None)],
        claim="The paper claims that the low-rank update converges to the full-rank one at O(1/r)",
        measured=f"the bias of the expected update falls with slope {fitted.mean:.2f} ± {fitted.std:.2f} over ranks "
        f"{ranks[0]} to {ranks[-1]} and {last.mean:.2f} over the last two, from {np.mean(relative[ranks[0]]):.1%} at "
        f"rank {ranks[0]} to {np.mean(relative[ranks[-1]]):.2%} at rank {ranks[-1]} (while at N = {population} the "
        f"noise of a single update is {np.mean(noise[ranks[0]]):.0%}, {ratio:.2f} times that of full rank, and hides "
        "it)",
        holds=bool(-1.15 < fitted.mean < -0.85),
        notes=f"f(W) = sum c tanh(W x), W of {shape[0]} x {shape[1]}, sigma {sigma}, {seeds} layers. Bias is |g_r - g| "
        "/ |g|, by quadrature; sampled with the library's noise as a check. The error of one update is that of a "
        "finite population, relative to the expected full-rank update: nearly all of it is Monte Carlo noise.",
        series={
            "ranks": list(ranks),
            "bias": [relative[rank] for rank in ranks],
            "slope": fitted.mean,
            "sampled": {rank: (np.mean(measured.found[rank]), measured.sampling_error(rank)) for rank in sampled},
            "noise": [np.mean(noise[rank]) for rank in ranks],
            "population": population,
        },
    )
