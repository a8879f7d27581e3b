"""The trainer against the naive twin of tests/oracle.py, bit for bit, in settings without a recorded trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, Trainer, validate
from tests.oracle import Oracle
from tests.oracle import validate as oracle_validate
from tests.traces import pseudo_text

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
}


def text(config: Config, size: int, seed: int) -> np.ndarray:
    """Bytes of the vocabulary with many document separators."""
    letters = pseudo_text(size, seed).astype(np.int64) % config.vocab_size
    return np.where(pseudo_text(size, seed + 50) % 11 == 0, 0, letters).astype(np.uint8)


def assert_same_run(trainer: Trainer, oracle: Oracle, epochs: int) -> None:
    for name, value in oracle.params.items():
        assert np.array_equal(np.array(trainer.params[name]), value), name
    for _ in range(epochs):
        result = trainer.step()
        scores, fitness = oracle.step()
        assert np.array_equal(result.scores, scores)
        assert np.array_equal(result.fitness, fitness)
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
