"""Validation, the exact figure, its standard error, and its dependence on the position in a document."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, init_params, validate
from nanoegg_mlx.cli import main
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.measure.code_lengths import CodeLengths
from nanoegg_mlx.measure.evaluate import evaluate, summarise, validation_rows
from nanoegg_mlx.store import checkpoint
from tests import oracle
from tests.tiny import train
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
    """(N, T), the same for all chunks and windows: each equals that of the oracle's logits."""
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


def documents_of(tokens: np.ndarray, rows: int, code_lengths: np.ndarray) -> tuple[Any, Any]:
    """By a plain loop: each document's [bits, bytes], and [bits, bytes] by position (None: before a row's first 0)."""
    width = len(tokens) // rows
    documents: dict[int, list[float]] = defaultdict(lambda: [0.0, 0])
    positions: dict[int | None, list[float]] = defaultdict(lambda: [0.0, 0])
    document = 0
    for row in range(rows):
        position: int | None = None
        for t in range(width):
            if tokens[row * width + t] == 0:
                document, position = document + 1, 0
            if t == width - 1:
                break
            position = position if position is None else position + 1
            for entry in (documents[document], positions[position]):
                entry[0] += code_lengths[row, t]
                entry[1] += 1
    return list(documents.values()), positions


def code_lengths_of(tokens: np.ndarray, rows: int, code_lengths: np.ndarray, window: int, group: int) -> CodeLengths:
    """Read in windows of tokens and groups of rows."""
    width = len(tokens) // rows
    inputs = tokens[: rows * width].reshape(rows, width)[:, :-1]
    parts = []
    for first in range(0, rows, group):
        part = slice(first, first + group)
        sums = CodeLengths(len(inputs[part]))
        for start in range(0, width - 1, window):
            lengths = code_lengths[part, start : start + window]
            sums.add(inputs[part, start : start + window], -np.rint(16 * lengths).sum(axis=1).astype(int), lengths)
        parts.append(sums)
    whole = CodeLengths(0)
    for name in vars(whole):
        setattr(whole, name, np.concatenate([getattr(part, name) for part in parts]))
    return whole


@pytest.mark.parametrize("share", [0, 0.003, 0.1, 0.6, 1])
@pytest.mark.parametrize("rows", [1, 7])
def test_documents_and_positions_against_a_plain_loop(share: float, rows: int) -> None:
    """Documents shorter than a window, longer than several rows, empty ones, and texts that begin with none."""
    random = np.random.default_rng(int(1000 * share) + rows)
    tokens = np.where(random.random(1500) < share, 0, random.integers(1, 256, 1500)).astype(np.uint8)
    width = len(tokens) // rows
    lengths = random.gamma(2, 2, (rows, width - 1))
    documents, positions = documents_of(tokens, rows, lengths)
    tally = code_lengths_of(tokens, rows, lengths, 16, rows)

    assert tally.exact_bits_per_byte() == pytest.approx(lengths.mean(), rel=1e-12)
    assert tally.bits_per_byte() == pytest.approx(lengths.mean(), abs=0.05)
    bits, size = np.array(documents).T
    count, error = tally.standard_error()
    assert count == len(documents)
    if count < 2:
        assert error is None
    else:
        residuals = bits - bits.sum() / size.sum() * size
        expected = math.sqrt(count / (count - 1) * (residuals**2).sum()) / size.sum()
        assert error == pytest.approx(expected, rel=1e-7, abs=1e-9)

    found = tally.by_position()
    assert sum(at.bytes for at in found) == lengths.size
    for at in found:
        inside = [n for n in positions if (n is None) == (at.first is None) and (n is None or at.first <= n <= at.last)]
        assert at.bytes == sum(positions[n][1] for n in inside)
        assert at.bits_per_byte == pytest.approx(sum(positions[n][0] for n in inside) / at.bytes, rel=1e-12)
    bounds = [(at.first, at.last) for at in found if at.first]
    assert bounds == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64)][: len(bounds)] or share < 0.1


@pytest.mark.parametrize("group", [1, 3, 10])
def test_groups_of_rows_do_not_show(group: int) -> None:
    """To the last bit: processes can share the rows."""
    random = np.random.default_rng(5)
    tokens = np.where(random.random(3000) < 0.02, 0, 65).astype(np.uint8)
    lengths = random.gamma(2, 2, (10, 299))
    whole = code_lengths_of(tokens, 10, lengths, 16, 10)
    parts = code_lengths_of(tokens, 10, lengths, 16, group)
    assert summarise(parts, 0.0) == summarise(whole, 0.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_evaluation_by_documents(engine: str) -> None:
    """From the model's own code lengths; `pseudo_text` has a 0 byte in 4093, so this text gets more."""
    config = CONFIG.replace(engine=engine)
    params = init_params(config)
    tokens = np.where(TEXT % 17 == 3, 0, TEXT).astype(np.uint8)
    evaluation = evaluate(params, tokens, config)
    rows = tokens[:999].reshape(3, 333)
    states = np.zeros((3, 2, 20), np.int8)
    lengths = make_engine(config).score(params, range(3), None, rows[:, :-1], rows[:, 1:], states, True).code_lengths
    assert lengths is not None
    documents, positions = documents_of(tokens, 3, lengths)
    assert evaluation.documents == len(documents) > 20
    assert evaluation.by_position[0].bytes == positions[1][1] > 20
    assert evaluation.by_position[0].bits_per_byte == pytest.approx(positions[1][0] / positions[1][1], rel=1e-12)
    assert evaluation.standard_error is not None and 0 < evaluation.standard_error < 1
    assert evaluate(params, TEXT[1:], config).standard_error is None


@pytest.mark.parametrize(("size", "rows"), [(5, 3), (1, 1), (0, 1)])
def test_too_short_a_text(size: int, rows: int) -> None:
    with pytest.raises(InputError) as caught:
        validation_rows(np.ones(size, np.uint8), rows)
    if size < 2:
        assert str(caught.value) == f"The number of validation tokens is {size}; it must be at least 2."
    else:
        assert f"{size} tokens" in str(caught.value) and f"validation_batch_size is {rows}" in str(caught.value)


def test_parameters_of_another_shape() -> None:
    with pytest.raises(InputError, match="emb"):
        validate(init_params(CONFIG.replace(n_embd=8)), TEXT, CONFIG)


def test_the_command_prints_the_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tokens = np.where(TEXT % 17 == 3, 0, TEXT).astype(np.uint8)
    np.save("train.npy", TEXT)
    np.save("valid.npy", tokens)
    config = CONFIG.replace(
        tokens_per_update=5, train="train.npy", valid="valid.npy", checkpoints="runs", name="t", num_epochs=1
    )
    train(config)
    evaluation = evaluate(checkpoint.load("runs/t").params, tokens, config)
    capsys.readouterr()
    assert main(["eval", "runs/t", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["standard_error"] == evaluation.standard_error and about["documents"] == evaluation.documents
    assert about["by_position"] == [dataclasses.asdict(at) for at in evaluation.by_position]

    assert main(["eval", "runs/t", "--by-position", "--baselines"]) == 0
    out = capsys.readouterr().out
    assert f"± {evaluation.standard_error:.4f}" in out and f"over {evaluation.documents} documents" in out
    for name, at in zip(["1", "2", "3-4", "5-8"], evaluation.by_position, strict=False):
        assert f"  {name:<28} {at.bits_per_byte:8.4f} {at.bytes:>14,}" in out
    assert "cut document (start unknown)" in out and "trigram" in out and "fitted to them" in out

    Path("note.txt").write_text("one document")
    assert main(["eval", "runs/t", "note.txt", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["standard_error"] is None and about["documents"] == 1
    assert main(["eval", "runs/t", "note.txt"]) == 0
    out = capsys.readouterr().out
    assert "no standard error: it needs two documents" in out and "±" not in out
