"""The trainer against the naive twins, bit for bit, in settings without a recorded trace: perturbed weights against
tests/oracle.py, nudged activations against tests/oracle_activations.py."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, Trainer, init_params, validate
from nanoegg_mlx.core.activations import Moments, Nudged, add_moments
from nanoegg_mlx.engines import make_engine
from tests.oracle import Oracle, Params
from tests.oracle import validate as oracle_validate
from tests.oracle_activations import NudgedOracle, Votes, read_lane, read_pair
from tests.traces import ENGINES, NUDGED_NAMES, Trace, pseudo_text, sha256

TINY: dict[str, Any] = {
    "n_layer": 2,
    "n_embd": 8,
    "vocab_size": 32,
    "population": 8,
    "tokens_per_update": 7,
    "sigma_shift": 0,
    "alpha": 0.5,
    "validation_batch_size": 3,
}
"""The config that the cases below change; noise as large as the weights, and updates that move half the entries."""

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "normalised fitness": {"fast_fitness": False},
    "normalised fitness, signs": {"fast_fitness": False, "use_clt": False},
    "signs of rank 2": {"use_clt": False, "rank": 2},
    "repeated noise, shared lanes": {"num_perturbations": 4, "group_size": 4, "population": 12},
    "more noise than members": {"num_perturbations": 100},
    "one group larger than the population": {"group_size": 64},
    "noise drawn once": {"noise_reuse": 0},
    "noise drawn every other epoch": {"noise_reuse": 2},
    "width 7": {"n_embd": 7, "vocab_size": 17, "n_layer": 3},
    "width 33": {"n_embd": 33, "rank": 3, "population": 4},
    "width 1": {"n_embd": 1, "n_layer": 1},
    "shift 0": {"sigma_shift": -4},
    "no noise left": {"sigma_shift": 27},
    "shift 16": {"sigma_shift": 12},
    "few entries move": {"alpha": 0.05, "population": 16},
    "every entry moves": {"alpha": 1.0},
    "decay": {"alpha": 7.5, "alpha_decay_timestep": 2},
    "long seed": {"seed": 2**63 + 12345},
    "one pair": {"population": 2},
    "inputs wider than float32 sums": {"n_embd": 300, "n_layer": 1, "population": 2, "tokens_per_update": 3},
    "all of the byte values": {"vocab_size": 256, "sigma_shift": 4},
    "one byte value": {"vocab_size": 1},
    "one token an epoch": {"tokens_per_update": 1},
    "a head of zeros": {"zero_head": True},
}

SPARSE_CASES: dict[str, dict[str, Any]] = {
    "sparse": {"sparse_embedding": True, "population": 16, "alpha": 0.3},
    "sparse, normalised fitness": {"sparse_embedding": True, "fast_fitness": False, "population": 12, "rank": 2},
    "sparse signs": {"sparse_embedding": True, "use_clt": False, "population": 12, "group_size": 4, "rank": 3},
    "sparse, repeated noise": {
        "sparse_embedding": True, "num_perturbations": 4, "group_size": 4, "population": 24, "fast_fitness": False,
    },
    "sparse, one lane": {"sparse_embedding": True, "group_size": 64},
    "sparse, every read entry moves": {"sparse_embedding": True, "alpha": 1.0, "fast_fitness": False},
    "sparse, one token": {"sparse_embedding": True, "tokens_per_update": 1, "group_size": 4, "noise_reuse": 0},
    "sparse, all of the byte values": {"sparse_embedding": True, "vocab_size": 256, "n_embd": 65, "n_layer": 1},
    "sparse, one byte value": {"sparse_embedding": True, "vocab_size": 1},
}  # fmt: skip
CASES |= SPARSE_CASES


def text(config: Config, size: int, seed: int) -> np.ndarray:
    """Bytes of the vocabulary with many document separators."""
    letters = pseudo_text(size, seed).astype(np.int64) % config.vocab_size
    return np.where(pseudo_text(size, seed + 50) % 11 == 0, 0, letters).astype(np.uint8)


def assert_same_run(trainer: Trainer, oracle: Oracle, epochs: int) -> None:
    for name, value in oracle.params.items():
        assert np.array_equal(np.array(trainer.params[name]), value), name
    for _ in range(epochs):
        result = trainer.step()
        assert np.array_equal(result.scores, oracle.step())
        assert np.array_equal(result.fitness, oracle.fitness)
        assert np.array_equal(np.array(trainer.states), oracle.states)
        assert trainer.states.shape == oracle.states.shape
        assert trainer.params.keys() == oracle.params.keys()
        for name, value in oracle.params.items():
            assert np.array_equal(np.array(trainer.params[name]), value), name


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_run_equals_the_oracle(changes: dict[str, Any]) -> None:
    """Three epochs over a text of two segments, the third of which is the first again; then validation."""
    config = Config(**{**TINY, **changes})
    group = min(config.group_size, config.population)
    lanes = config.population // group
    tokens = text(config, lanes * (2 * config.tokens_per_update + 1) + lanes // 2, 3)
    trainer, oracle = Trainer(config, tokens), Oracle(config, tokens)
    assert_same_run(trainer, oracle, 3)

    valid = text(config, 32, 4)
    scores, bits_per_byte = validate(trainer.params, valid, config)
    expected_scores, expected_figure = oracle_validate(config, oracle.params, valid)
    assert np.array_equal(scores, expected_scores)
    assert bits_per_byte == expected_figure


def test_text_of_separators_only() -> None:
    config = Config(**TINY)
    tokens = np.zeros(40, np.uint8)
    assert_same_run(Trainer(config, tokens), Oracle(config, tokens), 2)


def test_segments_wrap_around() -> None:
    """A single segment is read in every epoch, and the states are carried over the wrap."""
    config = Config(**TINY, noise_reuse=0)
    tokens = text(config, 4 * 8, 5)
    trainer, oracle = Trainer(config, tokens), Oracle(config, tokens)
    assert trainer.lanes.segments == 1
    assert_same_run(trainer, oracle, 4)


@pytest.mark.parametrize("chunk", [1, 2, 6, 8])
@pytest.mark.parametrize("changes", [{}, {"fast_fitness": False, "num_perturbations": 6}])
def test_chunks_do_not_show(chunk: int, changes: dict[str, Any]) -> None:
    config = Config(**{**TINY, **changes, "chunk": chunk})
    tokens = text(config, 90, 6)
    assert_same_run(Trainer(config, tokens), Oracle(config, tokens), 2)


def test_spans_of_members_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are gathered two members at a time, from lanes that six members share."""
    monkeypatch.setattr("nanoegg_mlx.training.estimators._SPAN_BYTES", 1)
    config = Config(**{**TINY, "population": 12, "group_size": 6})
    tokens = text(config, 60, 7)
    assert_same_run(Trainer(config, tokens), Oracle(config, tokens), 2)


def test_windows_of_tokens_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text longer than one evaluated graph."""
    monkeypatch.setattr("nanoegg_mlx.engines.mlx._WINDOW", 3)
    config = Config(**TINY)
    tokens = text(config, 90, 8)
    assert_same_run(Trainer(config, tokens), Oracle(config, tokens), 2)


NUDGED: dict[str, Any] = {key: value for key, value in TINY.items() if key != "sigma_shift"} | {
    "perturb": "activations",
    "alpha": 0.3,
}

NUDGED_CASES: dict[str, dict[str, Any]] = {
    "decorrelated": {"decorrelate": True},
    "decorrelated, head nudged": {"decorrelate": True, "head_rule": "perturb", "n_layer": 3},
    "decorrelated, three chunks": {"decorrelate": True, "n_embd": 130, "n_layer": 1, "population": 4},
    "plain": {},
    "perturbed head": {"head_rule": "perturb"},
    "width 1": {"n_embd": 1, "n_layer": 3, "vocab_size": 1},
    "width 2, one pair, one token": {"n_embd": 2, "population": 2, "tokens_per_update": 1},
    "width 63": {"n_embd": 63, "vocab_size": 65, "head_rule": "perturb", "n_layer": 1},
    "width 64": {"n_embd": 64, "vocab_size": 64, "head_rule": "perturb", "n_layer": 3},
    "width 65": {"n_embd": 65, "vocab_size": 130, "population": 4},
    "width 130": {"n_embd": 130, "vocab_size": 256, "population": 4, "head_rule": "perturb"},
    "inputs wider than float32 sums": {"n_embd": 300, "n_layer": 1, "population": 2, "tokens_per_update": 3},
    "largest seed": {"seed": 2**64 - 1},
    "large nudges": {"nudge": 64, "head_nudge": 64, "head_rule": "perturb"},
    "longest credit": {"credit_decay": 15, "tokens_per_update": 20},
    "own token only": {"credit_decay": 0},
    "one group larger than the population": {"group_size": 64, "population": 40, "tokens_per_update": 3},
    "every vote moves": {"alpha": 1.0},
    "decay": {"alpha": 7.5, "alpha_decay_timestep": 2},
}

LANES: dict[str, dict[str, Any]] = {
    "lanes of 2": {},
    "lanes of 4": {"group_size": 4},
    "lanes of 4, head nudged": {"group_size": 4, "head_rule": "perturb"},
    "lanes of 4, decorrelated": {"group_size": 4, "decorrelate": True},
    "lanes of 4, decorrelated, head nudged": {"group_size": 4, "decorrelate": True, "head_rule": "perturb"},
    "lanes of 4, three chunks": {"group_size": 4, "decorrelate": True, "n_embd": 130, "n_layer": 1, "population": 4},
    "lanes of 6, width 1": {"group_size": 6, "population": 12, "n_embd": 1, "n_layer": 3, "vocab_size": 1},
    "lanes of 6, width 65": {"group_size": 6, "population": 6, "n_embd": 65, "vocab_size": 130},
    "lanes of 10": {"group_size": 10, "population": 40, "tokens_per_update": 3, "vocab_size": 256},
    "lanes of 10, own token only": {"group_size": 10, "population": 20, "credit_decay": 0},
    "lanes of 10, one token": {"group_size": 10, "population": 20, "tokens_per_update": 1, "head_rule": "perturb"},
    "lanes of 64": {"group_size": 64, "population": 128, "tokens_per_update": 3, "vocab_size": 5},
    "a lane larger than the population": {"group_size": 128, "population": 40, "tokens_per_update": 3},
    "a group beyond the limit, but few members": {"group_size": 1000, "population": 24, "tokens_per_update": 3},
    "lanes of 128": {"group_size": 128, "population": 256, "tokens_per_update": 2, "n_layer": 1, "vocab_size": 9},
    "lanes of 128, largest credits": {
        "group_size": 128, "population": 128, "tokens_per_update": 6, "n_layer": 1, "nudge": 64, "head_nudge": 64,
        "head_rule": "perturb", "credit_decay": 15, "alpha": 1.0, "decorrelate": True,
    },
    "lanes of 4, largest seed": {"group_size": 4, "seed": 2**64 - 1, "nudge": 64, "alpha": 1.0},
}  # fmt: skip
"""Cases of docs/lane-baseline.md."""
NUDGED_CASES |= {name: {**changes, "antithetic": False} for name, changes in LANES.items()}


def random_changes(number: int) -> dict[str, Any]:
    """The changes of a random case, at most 120 tokens an epoch."""
    draw = random.Random(number)
    group = draw.choice([2, 2, 4, 10])
    lanes = draw.randint(1, 40 // group)
    return {
        "seed": draw.getrandbits(64),
        "n_embd": draw.choice([1, 2, 3, 16, 33, 63, 64, 65, 130]),
        "n_layer": draw.randint(1, 3),
        "vocab_size": draw.choice([2, 5, 63, 64, 65, 130, 256]),
        "population": group * lanes,
        "group_size": group,
        "tokens_per_update": draw.randint(1, min(20, 120 // (group * lanes))),
        "alpha": draw.choice([0.01, 0.3, 1.0, 4.0]),
        "alpha_decay_timestep": draw.choice([2, 100]),
        "nudge": draw.choice([1, 2, 5, 64]),
        "head_nudge": draw.choice([1, 4, 64]),
        "credit_decay": draw.randint(0, 15),
        "head_rule": draw.choice(["error", "perturb"]),
        "antithetic": draw.random() < 0.5,
        "decorrelate": draw.random() < 0.3,
    }


NUDGED_CASES |= {f"random {number}": random_changes(number) for number in range(24)}


@pytest.fixture
def interpreted() -> Iterator[None]:
    """MLX runs compiled functions as they are written: to compile one takes longer than all of its calls here."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def nudged_config(changes: dict[str, Any], engine: str) -> Config:
    return Config(**{**NUDGED, **changes, "engine": engine})


def two_segments(config: Config, seed: int) -> np.ndarray:
    return text(config, config.lanes * (2 * config.tokens_per_update + 1) + config.lanes // 2, seed)


def random_start(config: Config, largest: int, seed: int) -> tuple[Params, np.ndarray]:
    """Parameters up to `largest` in magnitude but for the norm weights, which stay 16; and states up to 127."""
    rng = np.random.default_rng(seed)
    params = {
        name: value if "ln" in name else rng.integers(-largest, largest + 1, value.shape).astype(np.int8)
        for name, value in NudgedOracle(config, two_segments(config, 9)).params.items()
    }
    states = rng.integers(-127, 128, (config.population, config.n_layer, config.n_embd)).astype(np.int8)
    return params, states


def assert_same_nudged_run(trainer: Trainer, oracle: NudgedOracle, epochs: int) -> None:
    for _ in range(epochs):
        result = trainer.step()
        assert np.array_equal(result.scores, oracle.step())
        assert_same_end(trainer, (oracle.params, oracle.states))


def assert_same_end(trainer: Trainer, expected: tuple[Params, np.ndarray]) -> None:
    params, states = expected
    assert np.array_equal(np.array(trainer.states), states)
    assert {name: np.array(value).dtype for name, value in trainer.params.items()} == dict.fromkeys(params, np.int8)
    for name, value in params.items():
        assert np.array_equal(np.array(trainer.params[name]), value), name


@cache
def nudged_oracle_run(name: str) -> list[tuple[np.ndarray, Params, np.ndarray]]:
    """The oracle's scores, parameters and states after each of three epochs; the third reads the first's segment."""
    config = Config(**{**NUDGED, **NUDGED_CASES[name]})
    oracle = NudgedOracle(config, two_segments(config, 3))
    return [(oracle.step(), oracle.params, oracle.states) for _ in range(3)]


@pytest.mark.parametrize("name", NUDGED_NAMES)
def test_recorded_trace_of_the_nudged_oracle(name: str) -> None:
    trace = Trace(name)
    oracle = NudgedOracle(trace.config, trace.train_tokens)
    for epoch in range(trace.epochs):
        assert np.array_equal(oracle.step(), trace.arrays["scores"][epoch])
        assert sha256(*oracle.params.values()) == trace.meta["params_sha256"][epoch]
        assert sha256(oracle.states) == trace.meta["states_sha256"][epoch]
    scores, bits_per_byte = oracle_validate(trace.config, oracle.params, trace.valid_tokens)
    assert np.array_equal(scores, trace.arrays["valid_scores"])
    assert bits_per_byte == trace.meta["valid_bpb"]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NUDGED_CASES)
def test_nudged_run_equals_the_oracle(name: str, engine: str) -> None:
    """Three epochs of one trainer, and the last of them by one that continues from the second epoch's end."""
    config = nudged_config(NUDGED_CASES[name], engine)
    tokens = two_segments(config, 3)
    trainer = Trainer(config, tokens)
    run = nudged_oracle_run(name)
    for scores, *expected in run:
        assert np.array_equal(trainer.step().scores, scores)
        assert_same_end(trainer, (expected[0], expected[1]))
    _, params, states = run[1]
    resumed = Trainer(config, tokens, params={k: mx.array(v) for k, v in params.items()}, states=states, epoch=2)
    assert np.array_equal(resumed.step().scores, run[2][0])
    assert_same_end(resumed, run[2][1:])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("head_rule", ["error", "perturb"])
@pytest.mark.parametrize("largest", [0, 1, 20, 127])
@pytest.mark.parametrize("decorrelate", [False, True])
@pytest.mark.parametrize("compared", [{}, {"antithetic": False, "group_size": 4}], ids=["pairs", "lanes"])
def test_nudged_run_from_any_parameters(
    compared: dict[str, Any], decorrelate: bool, largest: int, head_rule: str, engine: str
) -> None:
    """All zeros and ones, where the mean of a norm is 0, up to the largest numbers, where every clip acts."""
    changes = {"nudge": 1 if largest < 2 else 30, "alpha": 1.0, "head_rule": head_rule, "decorrelate": decorrelate}
    changes |= compared
    config = nudged_config(changes, engine)
    tokens = two_segments(config, 10)
    params, states = random_start(config, largest, largest)
    oracle = NudgedOracle(config, tokens)
    oracle.params, oracle.states, oracle.epoch = params, states, 70000
    start = {name: mx.array(value) for name, value in params.items()}
    assert_same_nudged_run(Trainer(config, tokens, params=start, states=states, epoch=70000), oracle, 2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("antithetic", [True, False])
def test_nudged_run_on_separators_only(antithetic: bool, engine: str) -> None:
    """The compiled step, since the trainer is not `interpreted` here; no state outlives a token."""
    config = nudged_config({"antithetic": antithetic, "group_size": 4}, engine)
    tokens = np.zeros(60, np.uint8)
    assert_same_nudged_run(Trainer(config, tokens), NudgedOracle(config, tokens), 2)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("changes", [{"chunk": 1}, {"chunk": 6}, {"chunk": 14}, {"threads": 3}], ids=str)
@pytest.mark.parametrize("antithetic", [True, False])
def test_chunks_spans_and_windows_do_not_show_in_a_nudged_run(
    antithetic: bool, changes: dict[str, int], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs or lanes are gathered one at a time if a span is a byte, and each token is a graph of its own."""
    monkeypatch.setattr("nanoegg_mlx.engines.mlx._CPU_PRODUCTS", 1)
    if "chunk" not in changes:
        monkeypatch.setattr("nanoegg_mlx.training.estimators._SPAN_BYTES", 1)
    config = nudged_config({**changes, "population": 18, "group_size": 6, "antithetic": antithetic}, engine)
    tokens = text(config, 60, 7)
    assert_same_nudged_run(Trainer(config, tokens), NudgedOracle(config, tokens), 2)


COMPARED: dict[str, dict[str, Any]] = {
    "pairs": {},
    "lanes of 2": {"antithetic": False},
    "lanes of 6": {"antithetic": False, "group_size": 6},
}


def cohort_texts(config: Config, cohorts: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts (cohorts, T + 1) and the states of their members."""
    texts = text(config, cohorts * (config.tokens_per_update + 1), 6).reshape(cohorts, -1)
    rng = np.random.default_rng(5)
    states = rng.integers(-127, 128, (cohorts * config.cohort, config.n_layer, config.n_embd))
    return texts, states.astype(np.int8)


def nudge(config: Config, members: range, texts: np.ndarray, states: np.ndarray) -> Nudged:
    return make_engine(config).nudge(init_params(config), members, 3, texts[:, :-1], texts[:, 1:], states)


def assert_same_moments(moments: Moments, expected: Moments) -> None:
    for sums, values in zip(moments, expected, strict=True):
        assert sums.keys() == values.keys()
        for name, value in values.items():
            assert sums[name].dtype == mx.int64
            assert np.array_equal(np.array(sums[name]), np.array(value)), name


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("head_rule", ["error", "perturb"])
@pytest.mark.parametrize("compared", COMPARED.values(), ids=COMPARED)
def test_moments_do_not_depend_on_chunks_and_add_up_over_spans(
    compared: dict[str, Any], head_rule: str, engine: str
) -> None:
    size = 2 if compared.get("antithetic", True) else compared.get("group_size", 2)
    config = nudged_config(
        {"population": 7 * size, "head_rule": head_rule, "decorrelate": True, **compared},
        engine,
    )
    assert config.cohort == size
    texts, states = cohort_texts(config, 7)
    whole = nudge(config, range(7 * size), texts, states)
    for changes in ({"chunk": 1}, {"chunk": 4}, {"chunk": 14}, {"chunk": 100}, {"threads": 1}, {"threads": 5}):
        other = nudge(config.replace(**changes), range(7 * size), texts, states)
        assert np.array_equal(other.scores, whole.scores)
        assert np.array_equal(other.states, whole.states)
        assert_same_moments(other.sums, whole.sums)
    parts = []
    for rows in (slice(0, 1), slice(1, 5), slice(5, 7)):
        own = slice(rows.start * size, rows.stop * size)
        part = nudge(config, range(own.start, own.stop), texts[rows], states[own])
        assert np.array_equal(part.scores, whole.scores[own])
        assert np.array_equal(part.states, whole.states[own])
        parts.append(part.sums)
    assert_same_moments(add_moments(add_moments(parts[2], parts[0]), parts[1]), whole.sums)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("head_rule", ["error", "perturb"])
@pytest.mark.parametrize("compared", [{}, {"antithetic": False, "group_size": 4}], ids=["pairs", "lanes"])
def test_last_members_of_the_largest_population(compared: dict[str, Any], head_rule: str, engine: str) -> None:
    """Their block numbers are beyond 2^32."""
    changes = {"population": 2**30, "seed": 2**64 - 2, "head_rule": head_rule, "tokens_per_update": 20}
    config = nudged_config({**changes, **compared}, engine)
    size = config.cohort
    texts, states = cohort_texts(config, 2)
    result = nudge(config, range(2**30 - 2 * size, 2**30), texts, states)
    params = {name: np.array(value) for name, value in init_params(config).items()}
    votes = Votes(config, params)
    read = read_pair if config.antithetic else read_lane
    for k in range(2):
        own = slice(k * size, k * size + size)
        scores, new_states = read(config, params, 2**30 // size - 2 + k, 3, texts[k].tolist(), states[own], votes)
        assert result.scores[own].tolist() == [sum(some) for some in scores]
        assert np.array_equal(result.states[own], new_states)
    S = {name: mx.array(S).reshape(result.sums.S[name].shape) for name, S in votes.S.items() if name in result.sums.S}
    by_error = {"head.E": mx.array(votes.E), "head.Y": mx.array(votes.Y)} if head_rule == "error" else {}
    assert_same_moments(result.sums, Moments({name: mx.array(Z) for name, Z in votes.Z.items()}, S | by_error, {}))
