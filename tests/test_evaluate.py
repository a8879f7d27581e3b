"""Validation, the exact figure and the yardsticks beside them."""

from __future__ import annotations

import gzip
import itertools
import lzma
import math
from collections import Counter

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, baselines, evaluate, init_params, validate
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.evaluate import validation_rows
from tests import oracle
from tests.traces import ENGINES, pseudo_text

CONFIG = Config(n_layer=2, n_embd=20, population=2, validation_batch_size=3)
TEXT = pseudo_text(1000, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_both_figures(engine: str) -> None:
    """The integer figure is validate's; the exact one is the code length of a softmax with base 2^(1/16)."""
    config = CONFIG.replace(engine=engine)
    params = init_params(config)
    scores, bits_per_byte = validate(params, TEXT, config)
    done: list[int] = []
    evaluation = evaluate(params, TEXT, config, done.append)
    assert evaluation.bits_per_byte == bits_per_byte == -scores.sum() / (16 * 996)
    assert (evaluation.tokens, evaluation.rows, sum(done)) == (996, 3, 996)

    weights = oracle.init_params(config)
    bits = 0.0
    for row in TEXT[:999].reshape(3, 333):
        state = np.zeros((2, 20), np.int64)
        for token, target in itertools.pairwise(row):
            logits, state = oracle.forward(weights, None, config.shift, state, int(token))
            exponents = np.asarray(logits, np.float64) / 16
            bits += math.log2(np.exp2(exponents).sum()) - exponents[target]
    assert evaluation.exact_bits_per_byte == pytest.approx(bits / 996, rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_code_lengths_are_each_targets_own(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """(N, T), whatever the chunks and windows: the oracle's logits give every single one."""
    monkeypatch.setattr("nanoegg_mlx.engines.mlx._WINDOW", 5)
    config = CONFIG.replace(engine=engine, chunk=2)
    params = init_params(config)
    rows = TEXT[:96].reshape(4, 24)
    states = np.zeros((4, 2, 20), np.int8)
    scored = make_engine(config).score(params, range(4), None, rows[:, :-1], rows[:, 1:], states, exact=True)
    assert scored.code_lengths is not None and scored.code_lengths.dtype == np.float64
    weights = oracle.init_params(config)
    expected = np.empty((4, 23))
    for row, tokens in enumerate(rows):
        state = np.zeros((2, 20), np.int64)
        for t in range(23):
            logits, state = oracle.forward(weights, None, config.shift, state, int(tokens[t]))
            exponents = np.asarray(logits, np.float64) / 16
            expected[row, t] = math.log2(math.fsum(np.exp2(exponents))) - exponents[tokens[t + 1]]
    assert scored.code_lengths == pytest.approx(expected, abs=1e-12)
    assert make_engine(config).score(params, range(4), None, rows[:, :-1], rows[:, 1:], states).code_lengths is None


@pytest.mark.parametrize("engine", ENGINES)
def test_the_exact_total_does_not_depend_on_how_rows_are_grouped(engine: str) -> None:
    params = init_params(CONFIG)
    figures = {
        evaluate(params, TEXT, CONFIG.replace(engine=engine, chunk=chunk, threads=threads)).exact_bits_per_byte
        for chunk, threads in [(0, 1), (2, 1), (2, 2), (6, 2)]
    }
    assert len(figures) == 1


@pytest.mark.parametrize(("size", "rows"), [(5, 3), (1, 1), (0, 1)])
def test_too_short_a_text(size: int, rows: int) -> None:
    with pytest.raises(InputError) as caught:
        validation_rows(np.ones(size, np.uint8), rows)
    assert f"{size} tokens" in str(caught.value) and f"validation_batch_size = {rows}" in str(caught.value)


def test_parameters_of_another_shape() -> None:
    with pytest.raises(InputError, match="emb"):
        validate(init_params(CONFIG.replace(n_embd=8)), TEXT, CONFIG)


@pytest.mark.parametrize("size", [2, 1000, 70_000])
def test_baselines(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_PIECE", 30_000)  # several pieces, whose seams must not show
    tokens = pseudo_text(size, 3)
    content = tokens.tobytes()
    single, pairs, first = Counter(content), Counter(itertools.pairwise(content)), Counter(content[:-1])
    unigram = -sum(n * math.log2(n / size) for n in single.values()) / size
    bigram = -sum(n * math.log2(n / first[a]) for (a, _), n in pairs.items()) / (size - 1)
    assert baselines.unigram(tokens) == pytest.approx(unigram, abs=1e-12)
    assert baselines.bigram(tokens) == pytest.approx(bigram, abs=1e-12)
    assert baselines.gzip(tokens) == 8 * len(gzip.compress(content, 9)) / size
    assert baselines.xz(tokens) == 8 * len(lzma.compress(content)) / size
