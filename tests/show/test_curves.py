"""Curves have the numbers of the metrics: short files, thinned files, damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import InputError
from nanoegg_mlx.show import curves
from nanoegg_mlx.show.curves import KEYS, Validation, open_run, read_curves
from nanoegg_mlx.store.metrics import read_metrics
from tests.tiny import tiny_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder; tests must not change it."""
    return tiny_run(tmp_path_factory.mktemp("curves"), num_epochs=20)


def test_short_curves_are_the_lines(folder: Path) -> None:
    metrics = read_metrics(folder / "metrics.jsonl")
    read = read_curves(folder / "metrics.jsonl")
    assert (read.lines, read.width) == (21, 1)
    for key in KEYS:
        expected = np.array([line.get(key) for line in metrics], float)
        for array in (read.mean[key], read.low[key], read.high[key]):
            assert np.array_equal(array, expected, equal_nan=True)
    for line, shares in zip(metrics, read.weights, strict=True):
        if "weights" in line:
            assert np.array_equal(shares, np.array(line["weights"]) / sum(line["weights"]))
        else:
            assert np.isnan(shares).all()
    assert read.last.keys() == set(KEYS)
    for key in KEYS:
        assert read.last[key] == metrics[-1][key] if key in metrics[-1] else np.isnan(read.last[key])
    validated = [
        Validation(line["epoch"], line["tokens"], line["validation"], line["validation_exact"])
        for line in metrics
        if line["validation"]
    ]
    assert read.first_validation == validated[0] and read.last_validation == validated[-1]
    assert read.best_validation == min(validated, key=lambda validation: validation.figure)


@pytest.mark.parametrize("block", [1 << 22, 997])
@pytest.mark.parametrize("number", [399, 400, 2573])
def test_long_curves_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, block: int) -> None:
    monkeypatch.setattr(curves, "_BLOCK", block)
    generator = np.random.default_rng(number)
    loss = generator.normal(5, 1, number)
    validation = np.where(np.arange(number) % 7 == 0, generator.normal(5, 1, number), np.nan)
    weights = generator.integers(1, 9, (number, 53))
    rows = []
    for e in range(number):
        row: dict[str, Any] = {"epoch": e, "tokens": 10 * e, "loss_mean": loss[e], "validation": None}
        if e % 7 == 0:
            row |= {"validation": validation[e], "weights": weights[e].tolist()}
        rows.append(row)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_curves(path, points=200)
    width = {399: 1, 400: 1, 2573: 8}[number]
    assert (read.lines, read.width) == (number, width)
    bins = [slice(start, start + width) for start in range(0, number, width)]
    assert len(read.mean["epoch"]) == len(bins) <= 400
    assert np.allclose(read.mean["loss_mean"], [loss[part].mean() for part in bins], rtol=1e-12)
    assert np.array_equal(read.low["loss_mean"], [loss[part].min() for part in bins])
    assert np.array_equal(read.high["loss_mean"], [loss[part].max() for part in bins])
    assert np.array_equal(read.mean["tokens"], [10 * np.arange(number)[part].mean() for part in bins])
    for position, part in enumerate(bins):
        finite = np.flatnonzero(np.isfinite(validation[part])) + part.start
        assert np.isfinite(read.mean["validation"][position]) == bool(len(finite))
        if len(finite):
            assert read.mean["validation"][position] == pytest.approx(validation[finite].mean())
            shares = weights[finite] / weights[finite].sum(axis=1, keepdims=True)
            assert np.allclose(read.weights[position], shares.mean(axis=0))
    best = int(np.nanargmin(validation))
    assert read.best_validation and read.best_validation.epoch == best
    assert not read.has("rss_mb") and read.has("loss_mean") and np.isnan(read.best_validation.exact)


def test_damaged_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"epoch": 1, "tokens": 2, "loss_mean": 3.5, "threshold": null}\n'
    for end in ("", '{"epoch": 1', "junk\n", '{"tokens": 3}\n', '{"epoch": 4}\n', '{"epoch": 1, "tokens": "x"}\n'):
        path.write_text(good * 3 + end)
        read = read_curves(path)
        assert read.lines == 3 and read.mean["loss_mean"].tolist() == [3.5] * 3, end
    for damage in ("junk\n", '{"tokens": 3}\n', '{"epoch": 4}\n', "\n", '{"epoch": 1, "tokens": 2, "ties": [1]}\n'):
        for block in (1 << 22, 1):
            monkeypatch.setattr(curves, "_BLOCK", block)
            path.write_text(good * 3 + damage + good)
            with pytest.raises(InputError, match=r"Line 4 of .*metrics\.jsonl is damaged; it must be"):
                read_curves(path)
    # NaN is not JSON, but Python writes it.
    path.write_text('{"epoch": 1, "tokens": 2, "loss_mean": NaN, "ties": 0.5}\n')
    assert read_curves(path).mean["ties"].tolist() == [0.5] and not read_curves(path).has("loss_mean")
    path.write_text("")
    with pytest.raises(InputError, match="has nothing to draw yet"):
        open_run(tmp_path)
    with pytest.raises(InputError, match=r"nowhere is not a run's; it must have"):
        open_run(tmp_path / "nowhere")


GOOD = '{"epoch": 1, "tokens": 2, "loss_mean": 3.5}\n'


@pytest.mark.parametrize(
    "line",
    ["null", "[]", '"x"', "5", "true", "{}", "[" * 100_000, '{"epoch": 1, "tokens": 2, "x": ' + "[" * 5000 + "]" * 5000,
     '{"epoch": null, "tokens": 2}', '{"epoch": "a", "tokens": 2}', '{"epoch": {}, "tokens": 2}', GOOD.strip() * 2,
     '{"epoch": 1, "tokens": 2, "ties": []}', '{"epoch": 1, "tokens": ' + "9" * 400 + "}", "\x00", "\ufeff"],
)  # fmt: skip
@pytest.mark.parametrize("block", [1 << 22, 1])
def test_a_line_that_is_no_record_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, block: int
) -> None:
    """Also at the beginning of a block, where a row `null` ended the process with Arrow's reader."""
    monkeypatch.setattr(curves, "_BLOCK", block)
    path = tmp_path / "metrics.jsonl"
    for before in (0, 3):
        path.write_text(GOOD * before + line + "\n" + GOOD)
        with pytest.raises(InputError, match=rf"Line {before + 1} of .*metrics\.jsonl is damaged; it must be"):
            read_curves(path)
        path.write_text(GOOD * before + line + "\n")
        assert read_curves(path).lines == before


def test_values_that_are_no_numbers_or_counts(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "metrics.jsonl"
    for weights in ([], [1], [[1] * 53] * 2, [0] * 53, [None] * 53):
        path.write_text(json.dumps({"epoch": 1, "tokens": 2, "weights": weights, "loss_mean": None}) + "\n")
        read = read_curves(path)
        assert read.lines == 1 and not np.isfinite(read.weights).any() and not read.has("loss_mean")
    path.write_text(json.dumps({"epoch": 1, "tokens": 2, "weights": [1e308] * 53}) + "\n")
    assert read_curves(path).lines == 1 and not recwarn.list
    path.write_text('{"epoch": 1, "tokens": 2, "loss_mean": -Infinity, "ties": true}\n')
    assert read_curves(path).mean["ties"].tolist() == [1.0] and not read_curves(path).has("loss_mean")
