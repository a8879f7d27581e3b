"""The claims about EGGROLL as experiments: functions with their sizes as arguments, each returning a `Result`.

    from nanoegg_mlx.eggroll import claims
    from nanoegg_mlx.eggroll.claims.quadratic import quadratic
    result = quadratic(seeds=10)                # .rows, .verdict, .holds
    results = claims.run_all("smoke")           # all experiments, at the smallest sizes
    python notebooks/eggroll_claims.py          # all experiments in full, with figures and a page

They need the extra `notebook` (scikit-learn for data, SciPy for quadrature, matplotlib for figures).
"""

from nanoegg_mlx.eggroll.claims.experiments import EXPERIMENTS, SMOKE, Size, run_all, run_experiment
from nanoegg_mlx.eggroll.claims.report import Result, Spread, machine, page, table

__all__ = [
    "EXPERIMENTS",
    "SMOKE",
    "Result",
    "Size",
    "Spread",
    "machine",
    "page",
    "run_all",
    "run_experiment",
    "table",
]
