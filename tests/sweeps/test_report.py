"""The report of a sweep agrees with its trials and needs no other file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoegg_mlx.cli import main
from nanoegg_mlx.show.text import quantity
from nanoegg_mlx.store.metrics import read_metrics
from nanoegg_mlx.sweeps import report
from nanoegg_mlx.sweeps.spec import Spec, read_spec
from nanoegg_mlx.sweeps.study import Sweep, read_study
from nanoegg_mlx.sweeps.workers import run_sweep
from tests.show.test_report import Reader
from tests.sweeps.tiny import RANGES, write_sweep
from tests.tiny import work_in

FOLDER = Path("sweep")
NAME = "a<b>&'c'"
DECAY = {"low": 0.5, "high": 4.0, "log": True, "times_epochs": True}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Spec, str]]:
    """A sweep of six trials and a seventh in progress, in the working folder, and its page."""
    with pytest.MonkeyPatch.context() as patch:
        work_in(tmp_path_factory.mktemp("sweep"), patch)
        ranges = {**RANGES, "alpha_decay_timestep": DECAY}
        assert run_sweep(read_spec(write_sweep(name=NAME, trials=6, ranges=ranges)), FOLDER) is None
        spec = read_spec(write_sweep(name=NAME, trials=7, ranges=ranges))
        running = Sweep(spec, FOLDER).claim()
        assert running is not None and main(["sweep", "s.toml", "--folder", str(FOLDER), "--report"]) == 0
        yield spec, (FOLDER / "report.html").read_text(encoding="utf-8")


def test_page(swept: tuple[Spec, str]) -> None:
    spec, page = swept
    reader = Reader(page)
    text = "\n".join(reader.texts)
    assert reader.texts[0] == f"{NAME} - nanoegg sweep" and "a<b>" not in page
    trials = sorted(read_study(spec, FOLDER).trials[:6], key=lambda trial: trial.value)
    assert f"{trials[0].value:.4f}\nbits per byte, best: trial {trials[0].number}" in text
    assert "6\ntrials complete" in text and "1\ntrials running" in text
    for rank, trial in enumerate(trials, 1):
        last = read_metrics(FOLDER / f"trial-{trial.number:04d}" / "metrics.jsonl")[-1]
        values = [trial.params[one.name] for one in spec.ranges]
        shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
        row = "\n".join([str(rank), str(trial.number), f"{trial.value:.4f}", *shown, "12", quantity(last["tokens"])])
        assert row in text
        # The legend of the learning curves, which are drawn twice.
        assert text.count(f"\n{trial.number}: {trial.value:.3f}\n") == 2
    titles = [value for _, name, value in reader.attributes if name == "aria-label"]
    slices = ["alpha", "sigma_shift", "alpha_decay_timestep"]
    assert titles[0] == "Best so far" and "Importance" in titles[1] and titles[2].startswith("Trials as lines")
    assert titles[3:] == ["Validation against tokens", "Validation against seconds", *slices]
    assert 'ranges.alpha\n{"low": 0.2, "high": 4.0}' in text and "budget.tokens" in text
    assert "Each trial is one seed" in text


def test_it_needs_nothing_from_outside(swept: tuple[Spec, str]) -> None:
    page = swept[1]
    assert "://" not in page and "@import" not in page and "<script" not in page
    loaded = [(name, value) for _, name, value in Reader(page).attributes if name in ("src", "href", "xlink:href")]
    assert loaded and all(value.startswith(("#", "data:image/png;base64,")) for _, value in loaded)
    names = [value for _, name, value in Reader(page).attributes if name == "id"]
    assert len(names) == len(set(names)) and {target for target in re.findall(r"url\(#([^)]*)\)", page)} <= set(names)
    assert "var(--run)" in page and "var(--muted)" in page


def test_a_sweep_that_has_just_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in(tmp_path, monkeypatch)
    spec = read_spec(write_sweep())
    Sweep(spec, FOLDER)
    assert report.write_report(spec, FOLDER) == FOLDER / "report.html"
    assert "No trial is complete yet." in (FOLDER / "report.html").read_text()
