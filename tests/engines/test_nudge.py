"""`CPUEngine.nudge` against the MLX engine, which is the definition, and the recorded traces, on every instruction set.
Results do not depend on threads, blocks and instruction sets."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config
from nanoegg_mlx.core.activations import Moments, Nudged, flatten
from nanoegg_mlx.engines import make_engine
from tests import test_golden
from tests.engines.inputs import ISAS, native, numbers, random_params
from tests.record_options import OPTIONS
from tests.traces import NUDGED_NAMES

WIDTHS = (1, 2, 33, 63, 64, 65, 130)


def assert_same(left: Nudged, right: Nudged, what: Any = "") -> None:
    """Equal to the last bit, and the sums in the same order: ranks add them as one array."""
    assert np.array_equal(left.scores, right.scores), what
    assert left.scores.dtype == right.scores.dtype == np.int64
    assert np.array_equal(left.states, right.states) and left.states.dtype == right.states.dtype, what
    for a, b in zip(left.sums, right.sums, strict=True):
        assert list(a) == list(b)
        for name in a:
            assert a[name].dtype == b[name].dtype == mx.int64, name
            assert a[name].shape == b[name].shape, name
            assert np.array_equal(np.array(a[name]), np.array(b[name])), (what, name)


def random_config(rng: np.random.Generator, width: int, group: int = 2, antithetic: bool = True) -> Config:
    """`group` members a lane, whose scores are compared in pairs or with the lane's first."""
    return Config(
        perturb="activations",
        antithetic=antithetic,
        group_size=group,
        n_layer=int(rng.integers(1, 4)),
        n_embd=width,
        vocab_size=int(rng.choice([5, 130, 256])),
        population=group * int(rng.integers(1, 2 + 40 // group)),
        tokens_per_update=int(rng.integers(1, 21)),
        nudge=int(rng.choice([1, 2, 5, 64])),
        head_nudge=int(rng.choice([1, 4, 64])),
        credit_decay=int(rng.integers(0, 16)),
        head_rule=str(rng.choice(["error", "perturb"])),
        decorrelate=bool(rng.integers(2)),
        seed=int(rng.integers(2**63)),
        engine="cpu",
        threads=int(rng.integers(1, 4)),
        chunk=int(rng.choice([0, 0, 2, 4, 6, 1000])),
    )


def random_arguments(rng: np.random.Generator, config: Config) -> tuple[Any, ...]:
    """Parameters, members (not always from 0 on), epoch, text with zero bytes, and states."""
    cohorts = config.population // config.cohort
    first = int(rng.integers(0, cohorts))
    members = range(first * config.cohort, config.population)
    text = rng.integers(0, config.vocab_size, (2, cohorts - first, config.tokens_per_update)).astype(np.uint8)
    text[0][rng.random(text[0].shape) < 0.1] = 0
    params = {name: mx.array(value) for name, value in random_params(rng, config).items()}
    states = numbers(rng, len(members), config.n_layer, config.n_embd)
    return params, members, int(rng.integers(0, 1000)), text[0], text[1], states


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("width", WIDTHS)
def test_random_runs_equal_the_definition(width: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng([width, number])
    config = random_config(rng, width)
    arguments = random_arguments(rng, config)
    expected = make_engine(config.replace(engine="mlx", chunk=0)).nudge(*arguments)
    for isa in ISAS:
        monkeypatch.setenv("NANOEGG_ISA", isa)
        assert_same(make_engine(config).nudge(*arguments), expected, (isa, config))


@pytest.mark.parametrize("group", [2, 4, 10, 64, 128])
@pytest.mark.parametrize("width", WIDTHS)
def test_random_lanes_equal_the_definition(width: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a baseline for each lane."""
    rng = np.random.default_rng([width, group, 1])
    config = random_config(rng, width, group, antithetic=False)
    if group > 10:
        config = config.replace(tokens_per_update=min(config.tokens_per_update, 4), chunk=group)
    arguments = random_arguments(rng, config)
    expected = make_engine(config.replace(engine="mlx", chunk=0)).nudge(*arguments)
    for isa in ISAS:
        monkeypatch.setenv("NANOEGG_ISA", isa)
        assert_same(make_engine(config).nudge(*arguments), expected, (isa, config))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [*NUDGED_NAMES, *OPTIONS])
def test_traces(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOEGG_ISA", isa)
    test_golden.test_trace_of_scores_and_parameters(name, "cpu")


@pytest.mark.parametrize("changes", [{}, {"antithetic": False, "group_size": 6}], ids=["pairs", "lanes"])
def test_threads_and_blocks_decide_nothing(changes: dict[str, Any]) -> None:
    config = Config(
        perturb="activations", n_layer=2, n_embd=20, population=102, tokens_per_update=37, vocab_size=90, engine="cpu",
        **changes,
    )  # fmt: skip
    arguments = random_arguments(np.random.default_rng(1), config)
    for head_rule in ("error", "perturb"):
        runs = [
            make_engine(config.replace(threads=threads, chunk=chunk, head_rule=head_rule)).nudge(*arguments)
            for threads in (1, 2, 7)
            for chunk in (0, 1, 2, 3, 10, 26, 1000)
        ]
        for run in runs[1:]:
            assert_same(run, runs[0])


@pytest.mark.parametrize("changes", [{}, {"antithetic": False, "group_size": 4}], ids=["pairs", "lanes"])
@pytest.mark.parametrize("engine_name", ["mlx", "cpu"])
def test_parts_of_a_population_add_up(engine_name: str, changes: dict[str, Any]) -> None:
    config = Config(
        perturb="activations", n_layer=1, n_embd=9, population=40, tokens_per_update=6, engine=engine_name, **changes
    )
    size = config.cohort
    rng = np.random.default_rng(2)
    params, _, epoch, _, _, _ = random_arguments(rng, config)
    text = rng.integers(0, 256, (2, 40 // size, 6)).astype(np.uint8)
    states = numbers(rng, 40, 1, 9)
    engine = make_engine(config)
    whole = engine.nudge(params, range(40), epoch, *text, states)
    parts = [
        engine.nudge(params, range(first, last), epoch, *text[:, first // size : last // size], states[first:last])
        for first, last in ((0, 12), (12, 40))
    ]
    assert np.array_equal(np.concatenate([part.scores for part in parts]), whole.scores)
    assert np.array_equal(np.concatenate([part.states for part in parts]), whole.states)
    total = flatten(parts[0].sums) + flatten(parts[1].sums)
    assert np.array_equal(np.array(total), np.array(flatten(whole.sums)))


@pytest.mark.parametrize("compared", [{}, {"cohort": 4, "antithetic": False}], ids=["pairs", "lanes"])
def test_sums_beyond_32_bits(compared: dict[str, Any]) -> None:
    """Every credit, coin and input at its limit for more pairs at tokens than an int32 sum of them could hold."""
    config = Config(
        perturb="activations",
        n_layer=1,
        n_embd=1,
        vocab_size=2,
        population=2,
        tokens_per_update=140_000,
        engine="cpu",
        head_rule="perturb",
        head_nudge=64,
        credit_decay=15,
    )
    params = {name: mx.array(value) for name, value in random_params(np.random.default_rng(3), config).items()}
    params |= {name: mx.full(params[name].shape, 127, mx.int8) for name in ("head", "emb", "ln_out.weight")}
    text = np.ones((2, 1, 140_000), np.uint8)
    states = np.zeros((compared.get("cohort", 2), 1, 1), np.int8)
    given = {"key": (1, 2), "head_nudge": 64, "credit_decay": 15, **compared}
    runs = []
    for isa in ISAS:
        weights = native.Weights({name: np.array(value) for name, value in params.items()}, isa=isa)
        runs.append(native.nudge(weights, text[0], text[1], states, **given))
    for run in runs[1:]:
        for a, b in zip(run[2:], runs[0][2:], strict=True):
            assert all(np.array_equal(a[name], b[name]) for name in a)
    assert runs[0][3]["head"].max() > 2**31


def test_moments_have_the_definition_s_names() -> None:
    config = Config(perturb="activations", n_layer=1, n_embd=4, population=4, tokens_per_update=2)
    arguments = random_arguments(np.random.default_rng(4), config)
    for rule in ("error", "perturb"):
        sums = make_engine(config.replace(engine="cpu", head_rule=rule)).nudge(*arguments).sums
        assert isinstance(sums, Moments) and ("head.E" in sums.S) == (rule == "error")
