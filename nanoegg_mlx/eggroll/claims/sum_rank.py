"""The rank of the weighted sum of a population's noise, and how its energy is spread over directions."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from nanoegg_mlx.eggroll import draw, draw_keys, weighted_sum
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import rank_name


def singular_values(seed: int, shape: tuple[int, int], population: int, rank: int | None) -> np.ndarray:
    """Of sum_i f_i E_i with normal f_i: float64 (min(m, n),), largest first."""
    E = draw(draw_keys(seed, 0, 0, range(population)), shape, rank)
    fitness = mx.random.normal((population,), key=mx.random.key(seed))
    return np.linalg.svd(np.array(weighted_sum(E, fitness, shape), np.float64), compute_uv=False)


def aggregate_rank(
    seeds: int = 10,
    shape: tuple[int, int] = (24, 32),
    populations: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    ranks: Sequence[int | None] = (1, 2, 4, None),
) -> Result:
    """The rank of sum_i f_i E_i against min(N r, m, n), and its singular values."""
    m, n = shape
    rows, spectra, right, total = [], {}, 0, 0
    for population in populations:
        for rank in ranks:
            values = [singular_values(seed, shape, population, rank) for seed in range(seeds)]
            # float32 sums are exact to about 1e-7 of the largest value.
            found = [int((s > 1e-5 * s[0]).sum()) for s in values]
            want = min(m, n) if rank is None else min(population * rank, m, n)
            right += sum(rank == want for rank in found)
            total += seeds
            spectra[(rank_name(rank), population)] = np.mean(values, axis=0) / population**0.5
            # The participation ratio: the number of directions that carry the energy.
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
        "though the noise of each member has rank r",
        measured=f"{right} of {total} sums have exactly this rank",
        holds=right == total,
        notes=f"sum f_i E_i for a matrix of {m} x {n}, normal f_i, without antithetic pairs (with them N is the "
        f"number of pairs); singular values above 1e-5 of the largest count; {seeds} seeds. Effective rank is (sum "
        "s^2)^2 / sum s^4.",
        series={"spectra": spectra},
    )
