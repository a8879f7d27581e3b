"""The experiments at small sizes: formulas against independent ones, verdicts, and the notebook as a script."""

from __future__ import annotations

import io
import math
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from nanoegg_mlx import eggroll
from nanoegg_mlx.eggroll import EggRoll, claims, draw_keys, flat, shape_fitness
from nanoegg_mlx.eggroll.claims import figures
from nanoegg_mlx.eggroll.claims.cartpole import LIMITS, cartpole, mean_return, move, starts
from nanoegg_mlx.eggroll.claims.digits import digits
from nanoegg_mlx.eggroll.claims.low_rank import expected_update, low_rank, slope
from nanoegg_mlx.eggroll.claims.quadratic import quadratic, second_moment
from nanoegg_mlx.eggroll.claims.report import Result, Spread, number, page, table
from nanoegg_mlx.eggroll.claims.runs import climb, estimates, multilayer, optional
from nanoegg_mlx.eggroll.claims.stability import stability
from nanoegg_mlx.eggroll.claims.step_reward import Threshold, reward, step_reward
from nanoegg_mlx.eggroll.claims.sum_rank import aggregate_rank
from nanoegg_mlx.eggroll.claims.throughput import throughput
from nanoegg_mlx.eggroll.claims.two_moons import two_moons
from nanoegg_mlx.eggroll.claims.variance import update_variance

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "eggroll_claims.py"


@pytest.mark.parametrize("package", [eggroll, claims], ids=["eggroll", "claims"])
def test_no_exported_name_shadows_a_submodule(package: ModuleType) -> None:
    assert not set(package.__all__) & {module.name for module in pkgutil.iter_modules(package.__path__)}


def test_many_runs_at_once_are_the_optimiser() -> None:
    target = mx.random.normal((3, 4), key=mx.random.key(5))

    def objective(W: mx.array) -> mx.array:
        return -mx.sum((W - target) ** 2)

    W = mx.random.normal((2, 3, 4), key=mx.random.key(6))
    for rank in (1, 2, None):
        keys = draw_keys(3, 0, 0, range(16)).reshape(2, 8, 2)
        found, fitness = estimates(objective, W, keys, 0.1, rank)
        # The first run's draws are those of an EggRoll of 16 members.
        eggroll = EggRoll({"W": W[0]}, 16, 0.1, 1.0, rank or 1, noise="lowrank" if rank else "full", seed=3)
        values = np.array(eggroll.evaluate(lambda tree: objective(tree["W"])))
        assert np.array_equal(np.array(fitness[0]).ravel(), values)
        weights, _ = shape_fitness(values, baseline="none", antithetic=True)
        assert np.abs(np.array(found[0] - eggroll.estimate(weights)["W"])).max() < 1e-4


def test_climbing_the_gradient_itself() -> None:
    start = mx.random.normal((3, 2, 2), key=mx.random.key(0))
    curve = climb(lambda W: -0.5 * mx.sum(W * W), start, [0.1, 0.5, 2.5], 4)
    assert curve.shape == (3, 5)
    for run, rate in enumerate((0.1, 0.5, 2.5)):
        assert curve[run] == pytest.approx(curve[run, 0] * (1 - rate) ** (2 * np.arange(5)), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3, None])
def test_second_moment_of_the_noise(rank: int | None) -> None:
    """K_r = E[<G, E>^2 |E|^2] / |G|^2 from NumPy's normals, for a G of rank one and of full rank."""
    random = np.random.default_rng(rank or 0)
    m, n, count = 3, 2, 400_000
    if rank is None:
        E = random.normal(size=(count, m, n))
    else:
        A, B = random.normal(size=(count, m, rank)), random.normal(size=(count, n, rank))
        E = A @ B.swapaxes(1, 2) / rank**0.5
    for G in (np.outer([1.0, 2, 3], [1.0, -1]), random.normal(size=(m, n))):
        samples = (E * G).sum((1, 2)) ** 2 * (E**2).sum((1, 2)) / (G**2).sum()
        assert abs(samples.mean() - second_moment(m, n, rank)) < 6 * samples.std() / count**0.5


def test_quadratic() -> None:
    result = quadratic(seeds=4, steps=100, shape=(8, 8), rate=0.02, populations=(16, 256))
    rows = {row["run"]: row for row in result.rows}
    assert list(rows) == [
        "SGD",
        "rank 1",
        "rank 2",
        "rank 4",
        "rank full",
        "sigma 0.01",
        "sigma 0.2",
        "population 16",
        "population 256",
    ]
    assert rows["SGD"]["loss, of the initial one"].mean == pytest.approx(0.98**200, rel=1e-4)
    for row in result.rows:
        assert row["loss, of the initial one"].mean == pytest.approx(row["predicted"], rel=0.35)
        assert row["loss, of the initial one"].count == 4
    # An antithetic difference of a quadratic is exact for any sigma.
    by_sigma = [rows[f"sigma {sigma}"]["loss, of the initial one"].mean for sigma in (0.01, 0.2)]
    assert by_sigma[0] == pytest.approx(by_sigma[1], rel=1e-3)
    assert rows["population 16"]["evaluations"] == 1600
    assert result.holds


def test_stability_of_sgd_ends_at_two() -> None:
    result = stability(seeds=2, steps=40, shape=(4, 4), rates=(0.2, 1.9, 2.1, 2.5), populations=(8, 64))
    limits = {(row["method"], row["condition"]): row["largest stable rate"].mean for row in result.rows}
    assert all(limits[("SGD", condition)] == 1.9 for condition in (1, 10, 100))
    for condition in (1, 10, 100):
        small, large = (limits[(f"EGGROLL, population {population}", condition)] for population in (8, 64))
        assert small <= large
    assert limits[("EGGROLL, population 8", 1)] < 1.9


def test_step_reward() -> None:
    model = Threshold(3, 4)
    x, y = mx.random.normal((16, 3)), mx.zeros(16, mx.int32)
    gradient = nn.value_and_grad(model, reward)(model, x, y)[1]
    assert all(mx.array_equal(leaf, mx.zeros_like(leaf)) for leaf in flat(gradient).values())
    model.out.weight, model.out.bias = mx.zeros((2, 4)), mx.array([1.0, 0.0])
    assert reward(model, x, y).item() == 1.0 and reward(model, x, y + 1).item() == 0.0

    result = step_reward(seeds=2, steps=30, population=32, examples=128)
    start, climbed, evolved = (row["test accuracy"] for row in result.rows)
    assert climbed.mean == start.mean and evolved.mean > start.mean + 0.1
    assert [row["evaluations"] for row in result.rows] == [0, 30, 960]


def test_two_moons() -> None:
    result = two_moons(seeds=2, steps=40, examples=32, sigmas=(0.1, 0.3), populations=(8, 32), noises=(0.05, 0.1))
    assert [row["method"] for row in result.rows].count("EGGROLL") == 5
    assert [row["method"] for row in result.rows].count("backpropagation") == 2
    assert all(0.7 < row["test accuracy"].mean <= 1 for row in result.rows)
    assert result.rows[0]["evaluations"] == 320 and result.rows[-1]["evaluations"] == 40


def test_expected_update_of_a_layer() -> None:
    s, c, length, sigma = np.array([0.3, -1.2]), np.array([1.0, -0.5]), 1.7, 0.4
    # By sampling z itself with NumPy: sum_k a_k b_k / sqrt(r).
    random = np.random.default_rng(0)
    for rank in (1, 3, None):
        if rank is None:
            z = random.normal(size=1_000_000)
        else:
            z = (random.normal(size=(1_000_000, rank)) * random.normal(size=(1_000_000, rank))).sum(1) / rank**0.5
        for row in range(2):
            samples = z * (np.tanh(s[row] + sigma * length * z) - np.tanh(s[row])) * c[row] / sigma
            error = samples.std() / 1000
            assert abs(expected_update(s, c, length, sigma, rank)[row] - samples.mean()) < 5 * error
    # Small sigma is the gradient, and a high rank is full rank.
    assert expected_update(s, c, length, 1e-4, 1) == pytest.approx(c * length / np.cosh(s) ** 2, rel=1e-6)
    full = expected_update(s, c, length, sigma, None)
    bias = {rank: np.linalg.norm(expected_update(s, c, length, sigma, rank) - full) for rank in (32, 64, 128)}
    assert slope(list(bias), list(bias.values())) == pytest.approx(-1, abs=0.03)
    assert slope([1, 2, 4], [3.0, 1.5, 0.75]) == pytest.approx(-1)


def test_low_rank() -> None:
    result = low_rank(seeds=3, ranks=(1, 4, 16), sampled=(1, 4), pairs=40_000, population=64)
    assert [row["rank"] for row in result.rows] == ["1", "4", "16", "full"]
    biases = [row["bias, exact"].mean for row in result.rows[:-1]]
    assert biases == sorted(biases, reverse=True) and result.rows[-1]["bias, exact"] == 0
    # The library's own noise agrees with the quadrature.
    for value, error in result.series["sampled"].values():
        assert error > 0 and math.isfinite(value)
    assert result.series["sampled"][1][0] == pytest.approx(biases[0], abs=0.05)
    assert result.series["slope"] == pytest.approx(-0.9, abs=0.1)


def test_rank_of_the_sum() -> None:
    result = aggregate_rank(seeds=2, shape=(6, 7), populations=(1, 2, 5, 8), ranks=(1, 2, None))
    found = {(row["members N"], row["rank r"]): row["rank of the sum"].mean for row in result.rows}
    assert found == {
        (1, "1"): 1, (1, "2"): 2, (1, "full"): 6, (2, "1"): 2, (2, "2"): 4, (2, "full"): 6,
        (5, "1"): 5, (5, "2"): 6, (5, "full"): 6, (8, "1"): 6, (8, "2"): 6, (8, "full"): 6,
    }  # fmt: skip
    assert result.holds


def test_throughput_and_what_it_skips() -> None:
    sizes = {"widths": (16, 32), "populations": (4, 8), "rows_each": (1, 2), "repeats": 3, "few": 2}
    result = throughput(**sizes, time_bound=60.0, memory_bound=4 * 32 * 32 * 2)
    assert len(result.rows) == 8
    assert {(row["width"], row["naive measured on"]) for row in result.rows} == {
        (16, "4 members"), (16, "8 members"), (32, "2 members")
    }  # fmt: skip
    assert all(row["turns"] == 3 and row["kept of pure"].count == 3 for row in result.rows)
    nothing = throughput(**sizes, time_bound=0.0)
    assert all(str(row["kept of pure"]).startswith("skipped: ") for row in nothing.rows)
    assert not nothing.holds and "nothing" in nothing.verdict


def test_cartpole_moves_as_in_the_textbook() -> None:
    random = np.random.default_rng(0)
    states, pushes = random.normal(size=(50, 4)) * 0.3, random.choice([-1.0, 1.0], 50)
    moved = np.array(move(mx.array(states, mx.float32), mx.array(pushes, mx.float32)))
    for (x, v, theta, omega), push, got in zip(states, pushes, moved, strict=True):
        temp = (10 * push + 0.05 * omega**2 * math.sin(theta)) / 1.1
        alpha = (9.8 * math.sin(theta) - math.cos(theta) * temp) / (0.5 * (4 / 3 - 0.1 * math.cos(theta) ** 2 / 1.1))
        a = temp - 0.05 * alpha * math.cos(theta) / 1.1
        want = (x + 0.02 * v, v + 0.02 * a, theta + 0.02 * omega, omega + 0.02 * alpha)
        assert got == pytest.approx(want, abs=1e-6)


def test_return_counts_the_steps_before_the_fall() -> None:
    class Right(nn.Module):
        def __call__(self, state: mx.array) -> mx.array:
            return mx.ones((*state.shape[:-1], 1))

    begin = starts(6, 3)
    counts = []
    for state in np.array(begin):
        alive = 0
        while True:
            state = np.array(move(mx.array(state), mx.array(1.0)))
            if abs(state[0]) >= LIMITS[0] or abs(state[2]) >= LIMITS[1]:
                break
            alive += 1
        counts.append(alive)
    assert 5 < min(counts) < 15
    assert mean_return(Right(), begin, 40).item() == pytest.approx(np.mean(counts))
    assert mean_return(Right(), begin, 4).item() == 4.0


def test_cartpole_learns() -> None:
    result = cartpole(seeds=2, generations=6, population=16, episodes=2, steps=60)
    assert result.rows[0]["episodes"] == 0 and result.rows[-1]["episodes"] == 6 * 32
    assert result.rows[-1]["return"].mean > result.rows[0]["return"].mean


def test_digits_at_equal_evaluations() -> None:
    result = digits(seeds=2, steps=20, population=48, batch=32, hidden=8)
    evolved, _, evaluations = result.rows
    assert evolved["evaluations"] == 20 * 48 * 32 == evaluations["evaluations"]
    assert evolved["test accuracy"].mean > 0.1 and evaluations["test accuracy"].mean > evolved["test accuracy"].mean


def test_variance() -> None:
    result = update_variance(seeds=2, updates=10, population=16)
    rows = {(row["antithetic"], row["baseline"], row["shaping"]): row for row in result.rows}
    assert len(rows) == 12
    for shaping in ("none", "sign"):
        # Pairs cancel a baseline; sums in another order may differ in the last bits.
        without, with_mean = (
            rows[("yes", baseline, shaping)]["cosine to the gradient"].mean for baseline in ("none", "mean")
        )
        assert without == pytest.approx(with_mean, abs=1e-5)
    plain, centred = (rows[("no", baseline, "none")]["variance / signal^2"].mean for baseline in ("none", "mean"))
    assert plain > 10 * centred
    # All fitness is negative here: without a baseline every sign is the same: no signal.
    assert rows[("no", "none", "sign")]["variance / signal^2"] == "no signal"


def test_numbers_tables_and_verdicts() -> None:
    assert [number(x) for x in (0.0, 0.01234, 45.67, 12345.6, 1.23e-7, math.nan)] == [
        "0",
        "0.0123",
        "45.7",
        "12,346",
        "1.23e-07",
        "diverged",
    ]
    assert str(Spread.of([1.0, 2.0, 3.0])) == "2 ± 1" and Spread.of([1.0, 2.0, 3.0]).error == pytest.approx(3**-0.5)
    assert str(Spread.of([0.5])) == "0.5 ± 0"
    rows = [{"a": 1234, "b": 0.5, "c": Spread.of([1.0, 1.0])}]
    assert table(rows) == "| a | b | c |\n| --- | --- | --- |\n| 1,234 | 0.5 | 1 ± 0 |\n"
    result = Result("Title", rows, "The claim", "the numbers", True, "Notes.")
    assert result.verdict == "The claim; measured: the numbers: it holds here."
    other = Result("Title", rows, "The claim", "the numbers", False)
    assert other.verdict == "The claim; measured: the numbers: it does not hold here."
    text = page({"one": result, "two": other}, "Opening.", ["one"], "figures/")
    assert "1. **holds**: The claim" in text and "2. **does not hold**: The claim" in text
    assert text.count("<picture>") == 1 and 'src="figures/one-light.png"' in text and "## 2. Title" in text


def test_a_missing_module_is_named() -> None:
    with pytest.raises(
        ImportError, match=r"^no_such_module is not installed; it must be .*'nanoegg-mlx\[notebook\]'\.$"
    ):
        optional("no_such_module")
    assert optional("math").pi == math.pi


def test_a_network_of_a_seed() -> None:
    one, same, other = (multilayer((3, 4, 2), seed) for seed in (1, 1, 2))
    x = mx.ones((1, 3))
    assert mx.array_equal(one(x), same(x)) and not mx.array_equal(one(x), other(x))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_have_the_ground_of_their_theme(theme: figures.Theme) -> None:
    from matplotlib.colors import to_hex
    from PIL import Image

    result = claims.run_experiment("aggregate_rank", "smoke")
    figure = figures.draw("aggregate_rank", result, theme)
    assert to_hex(figure.get_facecolor()) == {"light": "#ffffff", "dark": "#0d1117"}[theme]
    image = Image.open(io.BytesIO(figures.png("aggregate_rank", result, theme))).convert("RGB")
    assert to_hex([channel / 255 for channel in image.getpixel((0, 0))]) == to_hex(figure.get_facecolor())
    lines = figure.axes[-1].get_lines()
    assert [line.get_label() for line in lines] == ["rank 1", "rank 2", "rank full"]
    assert lines[0].get_ydata() == pytest.approx(result.series["spectra"][("1", 16)])


def test_the_notebook_is_in_order() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "marimo", "check", "--strict", str(NOTEBOOK)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_notebook_as_a_script(tmp_path: Path) -> None:
    """All experiments, verdicts, figures and the page, at the smallest sizes."""
    command = [sys.executable, str(NOTEBOOK), "--smoke", "--output", str(tmp_path / "out")]
    path = os.pathsep.join([str(NOTEBOOK.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "claims.md").read_text(encoding="utf-8")
    assert "python notebooks/eggroll_claims.py --smoke" in text
    for name in claims.EXPERIMENTS:
        assert f"{name}, " in done.stdout
        for theme in ("light", "dark"):
            image = tmp_path / "out" / "claims" / f"{name}-{theme}.png"
            assert image.read_bytes().startswith(b"\x89PNG") and f"claims/{image.name}" in text
    assert text.count(" hold here.") + text.count(" holds here.") == 2 * len(claims.EXPERIMENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
