"""Low rank against full rank: what of the difference is bias, what is Monte Carlo noise, and what is rank.

The claim of O(1/r) is about expectations. Let g_r = E[E f(W + sigma E)] / sigma be the expected update with noise of
rank r, and g the Gaussian one. Entries of A B^T / sqrt(r) have the Gaussian's first three moments, and are a mean of r
independent matrices times sqrt(r), so that their fourth cumulant is exactly that of rank 1 over r. Taylor's series of f
meets the fourth moments first in its cubic term: g_r - g = sigma^2 / 6 (f''' : fourth cumulant) / r + ..., and what
comes after is of order 1/r^2. For a quadratic f there is no bias at all, and for any f a finite population's update is
noisy by O(1 / sqrt(N)), which hides the bias unless N is in the millions. So bias and noise are measured apart.

(In the paper's words: the update f E uses the score of a Gaussian for noise that is Gaussian only in the limit.)

The bias has a closed form for a layer f(W) = sum_i c_i tanh(w_i x), w_i the rows of W. Row i sees E only through
z = e_i^T E x / |x| = sum_k A_ik (B_k x / |x|) / sqrt(r), which, given A, is normal with variance q = |A_i|^2 / r: a
chi-squared variable of r degrees, over r. By Stein's identity the expected update is, along x / |x| and zero across,

    g_r,i = c_i |x| E_q[ q E_xi[ sech^2(s_i + sigma |x| sqrt(q) xi) ] ],    s_i = w_i x,  xi standard normal,

a two-dimensional integral that quadrature does to many digits; full rank is q = 1. The same layer is then sampled with
the library's own noise as a check of the formula.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from nanoegg_mlx.eggroll import draw, draw_keys, weighted_sum
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import estimates, optional, rank_name


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
    """Of log bias over log rank, least squares."""
    return float(np.polyfit(np.log(ranks), np.log(bias), 1)[0])


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
        seeds: layers (W, x, c), each with samples of its own.
        ranks: whose bias is computed; the slope is fitted over all of them.
        sampled: of those, whose bias is measured as well.
        pairs: antithetic pairs for each seed and rank of the measurement.
        population: of the finite update.
    """
    m, n = shape
    rank: int | None
    relative: dict[int, list[float]] = {rank: [] for rank in ranks}
    angle: dict[int, list[float]] = {rank: [] for rank in ranks}
    # Both signed, since a sampled norm could not be zero: the bias as seen along one direction.
    found: dict[int | None, list[float]] = {rank: [] for rank in (*sampled, None)}
    predicted: dict[int | None, list[float]] = {rank: [] for rank in (*sampled, None)}
    to_gradient: dict[int | None, list[float]] = {rank: [] for rank in (*ranks, None)}
    to_full: dict[int | None, list[float]] = {rank: [] for rank in (*ranks, None)}
    noise: dict[int | None, list[float]] = {rank: [] for rank in (*ranks, None)}
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        W, x, c = random.normal(size=(m, n)) / n**0.5, random.normal(size=n), random.normal(size=m)
        length = float(np.linalg.norm(x))
        across = x / length
        full = expected_update(W @ x, c, length, sigma, None)
        biases = {rank: expected_update(W @ x, c, length, sigma, rank) - full for rank in ranks}
        for rank, bias in biases.items():
            relative[rank].append(float(np.linalg.norm(bias) / np.linalg.norm(full)))
            cosine = full @ (full + bias) / np.linalg.norm(full) / np.linalg.norm(full + bias)
            angle[rank].append(float(1 - cosine))

        W32, x32, c32 = (mx.array(value, mx.float32) for value in (W, x, c))

        def objective(W: mx.array, x: mx.array = x32, c: mx.array = c32) -> mx.array:
            return mx.sum(c * mx.tanh(W @ x))

        for rank in (*sampled, None):
            # Along the direction of the largest bias, which the noise of the other directions cannot enter.
            direction = biases[ranks[0]] / np.linalg.norm(biases[ranks[0]])
            chunk = min(pairs, 50_000)
            total = np.zeros((m, n))
            for part in range(pairs // chunk):
                keys = draw_keys(seed, part, rank or 0, range(chunk))[None]
                total += np.array(estimates(objective, W32[None], keys, sigma, rank)[0][0], np.float64)
            mean = total / (pairs // chunk) @ across
            found[rank].append(float((mean - full) @ direction / np.linalg.norm(full)))
            exact = biases[rank] if rank else np.zeros(m)
            predicted[rank].append(float(exact @ direction / np.linalg.norm(full)))

        truth = np.outer(full, across).ravel()
        updates = {}
        for rank in (None, *ranks):
            # Separate noise for each rank, and another draw again for full rank against itself.
            keys = draw_keys(seed, 1 << 20, 1000 + (rank or 0), range(population // 2))[None]
            updates[rank] = np.array(estimates(objective, W32[None], keys, sigma, rank)[0], np.float64).ravel()
        keys = draw_keys(seed, 1 << 21, 1000, range(population // 2))[None]
        again = np.array(estimates(objective, W32[None], keys, sigma, None)[0], np.float64).ravel()
        for rank, update in updates.items():
            other = again if rank is None else updates[None]
            to_full[rank].append(float(update @ other / np.linalg.norm(update) / np.linalg.norm(other)))
            to_gradient[rank].append(float(update @ truth / np.linalg.norm(update) / np.linalg.norm(truth)))
            noise[rank].append(float(np.linalg.norm(update - truth) / np.linalg.norm(truth)))

    slopes = [slope(ranks, [relative[rank][seed] for rank in ranks]) for seed in range(seeds)]
    fitted = Spread.of(slopes)
    rows = []
    for rank in (*ranks, None):
        checked = "-"
        if rank in found:
            error = Spread.of(np.subtract(found[rank], predicted[rank])).error
            checked = f"{np.mean(predicted[rank]):.4f} / {np.mean(found[rank]):.4f} ± {error:.4f} (s.e.)"
        rows.append(
            {
                "rank": rank_name(rank),
                "bias, exact": Spread.of(relative[rank]) if rank else 0.0,
                "bias x rank": float(np.mean(relative[rank]) * rank) if rank else "-",
                "1 - cosine of expected updates": Spread.of(angle[rank]) if rank else 0.0,
                f"bias along one direction, exact / sampled ({2 * pairs:,} members)": checked,
                f"error of one update, N = {population}": Spread.of(noise[rank]),
                "its cosine to a full-rank update": Spread.of(to_full[rank]),
                "its cosine to the expected update": Spread.of(to_gradient[rank]),
            }
        )
    last = Spread.of(slope(ranks[-2:], [relative[rank][seed] for rank in ranks[-2:]]) for seed in range(seeds))
    ratio = np.mean(noise[ranks[0]]) / np.mean(noise[None])
    return Result(
        title="Low rank against full rank: the update",
        rows=rows,
        claim="The paper claims that the low-rank update converges to the full-rank one at O(1/r)",
        measured=f"the bias of the expected update falls with slope {fitted.mean:.2f} ± {fitted.std:.2f} over ranks "
        f"{ranks[0]} to {ranks[-1]} and {last.mean:.2f} over the last two, from {np.mean(relative[ranks[0]]):.1%} at "
        f"rank {ranks[0]} to {np.mean(relative[ranks[-1]]):.2%} at rank {ranks[-1]} (while at N = {population} the "
        f"noise of a single update is {np.mean(noise[ranks[0]]):.0%}, {ratio:.2f} times that of full rank, and hides "
        "it)",
        holds=bool(-1.15 < fitted.mean < -0.85),
        notes=f"f(W) = sum c tanh(W x), W of {m} x {n}, sigma {sigma}, {seeds} layers. Bias is |g_r - g| / |g|, by "
        "quadrature; sampled with the library's noise as a check. The error of one update is that of a finite "
        "population, relative to the expected full-rank update: nearly all of it is Monte Carlo noise.",
        series={
            "ranks": list(ranks),
            "bias": [relative[rank] for rank in ranks],
            "slope": fitted.mean,
            "sampled": {
                rank: (np.mean(found[rank]), Spread.of(np.subtract(found[rank], predicted[rank])).error)
                for rank in sampled
            },
            "noise": [np.mean(noise[rank]) for rank in ranks],
            "population": population,
        },
    )


def aggregate_rank(
    seeds: int = 10,
    shape: tuple[int, int] = (24, 32),
    populations: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    ranks: Sequence[int | None] = (1, 2, 4, None),
) -> Result:
    """The rank of sum_i f_i E_i against min(N r, m, n), and its singular values."""
    m, n = shape
    rows, spectra, right, all_of = [], {}, 0, 0
    for population in populations:
        for rank in ranks:
            values = []
            for seed in range(seeds):
                E = draw(draw_keys(seed, 0, 0, range(population)), shape, rank)
                fitness = mx.random.normal((population,), key=mx.random.key(seed))
                values.append(np.linalg.svd(np.array(weighted_sum(E, fitness, shape), np.float64), compute_uv=False))
            # float32 sums are exact to about 1e-7 of the largest value.
            found = [int((s > 1e-5 * s[0]).sum()) for s in values]
            want = min(m, n) if rank is None else min(population * rank, m, n)
            right += sum(rank == want for rank in found)
            all_of += seeds
            spectra[(rank_name(rank), population)] = np.mean(values, axis=0) / population**0.5
            # The participation ratio: by how many directions the energy is carried.
            energy = [(s**2).sum() ** 2 / (s**4).sum() for s in values]
            rows.append(
                {
                    "members N": population,
                    "rank r": rank_name(rank),
                    "min(N r, m, n)": want,
                    "rank of the sum": Spread.of(found),
                    "effective rank": Spread.of(energy),
                }
            )
    return Result(
        title="Low rank against full rank: the rank of the sum",
        rows=rows,
        claim="The expectation is an update of rank min(N r, m, n): full as soon as the population is large enough, "
        "though each member's noise is of rank r",
        measured=f"{right} of {all_of} sums have exactly this rank",
        holds=right == all_of,
        notes=f"sum f_i E_i for a matrix of {m} x {n}, normal f_i, without antithetic pairs (with them N is the "
        f"number of pairs); singular values above 1e-5 of the largest count; {seeds} seeds. Effective rank is (sum "
        "s^2)^2 / sum s^4.",
        series={"spectra": spectra},
    )
