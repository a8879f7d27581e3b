"""From the members' fitness to their weights in the update."""

from __future__ import annotations

from typing import Literal

import numpy as np

Shaping = Literal["none", "centered-rank", "zscore", "sign"]
Baseline = Literal["none", "mean"] | float


def kept_members(fitness: np.ndarray, antithetic: bool) -> np.ndarray:
    """The members that count: bool (N,). A member whose fitness is not finite is dropped, together with its twin.

    The estimate uses the difference of twins, in which the constant part of the fitness cancels. A single twin would
    add this part, however large, to the weight of its noise.
    """
    finite = np.isfinite(fitness)
    return np.repeat(finite[0::2] & finite[1::2], 2) if antithetic else finite


def centered_ranks(fitness: np.ndarray) -> np.ndarray:
    """Ranks mapped to [-1/2, 1/2]; equal values share the mean of their ranks: float64 (N,)."""
    if len(fitness) < 2:
        return np.zeros(len(fitness))
    _, which, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[which] / (len(fitness) - 1) - 0.5


def shape_fitness(
    fitness: np.ndarray, shaping: Shaping = "none", baseline: Baseline = "mean", antithetic: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The weight of each member in the update.

    Args:
        fitness: (N,), higher is better; antithetic twins are neighbours.
        shaping: `none`; `centered-rank`: ranks in [-1/2, 1/2]; `zscore`: divided by the standard deviation; `sign`: +1
            or -1, compared with the twin if there is one (only the better of a pair counts), else with the baseline.
        baseline: subtracted first: nothing ("none"), the mean of the kept members ("mean"), or a number.

    Returns:
        The weights, float64 (N,), 0 for a dropped member; and the kept members, bool (N,).
    """
    fitness = np.asarray(fitness, np.float64)
    kept = kept_members(fitness, antithetic)
    weights = np.zeros_like(fitness)
    if not kept.any():
        return weights, kept
    values = fitness[kept]
    centered = values - (0 if baseline == "none" else values.mean() if baseline == "mean" else float(baseline))
    if shaping == "centered-rank":
        centered = centered_ranks(values)
    elif shaping == "zscore":
        # Equal fitness has zero deviation and no direction: the weights stay zero.
        centered = centered / (values.std() or 1)
    elif shaping == "sign" and antithetic:
        better = np.sign(values[0::2] - values[1::2])
        centered = np.stack([better, -better], axis=1).reshape(-1)
    elif shaping == "sign":
        centered = np.sign(centered)
    weights[kept] = centered
    return weights, kept
