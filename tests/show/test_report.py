"""The report of a run agrees with the run's folder and needs no other file."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nanoegg_mlx.cli import main
from nanoegg_mlx.measure import baselines
from nanoegg_mlx.show import curves, report
from nanoegg_mlx.show.page import compose
from nanoegg_mlx.show.panels import panels
from nanoegg_mlx.show.style import COLOURS, GRID, INK, MUTED
from nanoegg_mlx.show.text import duration
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.metrics import read_metrics
from nanoegg_mlx.store.tokens import fingerprint
from tests.tiny import tiny_run
from tests.traces import pseudo_text

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with a name that HTML must escape; tests must not change it."""
    return tiny_run(tmp_path_factory.mktemp("report"), num_epochs=14, name="a<b>&'c'")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return report.page(folder)


def test_summary_of_the_run(folder: Path, page: str) -> None:
    reader = Reader(page)
    text = "\n".join(reader.texts)
    last = read_metrics(folder / "metrics.jsonl")[-1]
    assert reader.texts[0] == "a<b>&'c' - nanoegg run" and "a<b>" not in page
    assert "1 layer, 8 wide, population 16, 14 epochs, 1.34k tokens; finished" in text
    validated = [line for line in read_metrics(folder / "metrics.jsonl") if line["validation"] is not None]
    best = min(validated, key=lambda line: line["validation"])
    assert f"{last['validation']:.4f}\nbits per byte, last validation" in text
    assert f"{best['validation']:.4f}\nbest, after {best['epoch']} epochs" in text
    first = validated[0]
    row = f"first validation, after 0 epochs\n{first['validation']:.4f}\n{first['validation_exact']:.4f}"
    assert row in text
    for name in ("unigram", "bigram", "gzip"):
        assert f"{name} of the same bytes\n{baselines.BASELINES[name](pseudo_text(900, 2)):.4f}" in text
    assert f"{duration(last['seconds'])}\nof training" in text


def test_it_has_the_config_the_data_and_the_machine(folder: Path, page: str) -> None:
    text = "\n".join(Reader(page).texts)
    opened = checkpoint.load(folder)
    for name, value in (("n_embd", 8), ("use_clt", "true"), ("alpha", 4.0), ("num_epochs", 14), ("engine", None)):
        assert f"\n{name}\n" + ("" if value is None else f"{value}\n") in text
    assert text.index("[model]") < text.index("[evolution]") < text.index("[data]") < text.index("[run]")
    changed = re.findall(r'<tr class="changed"><td class="name"><code>(\w+)', page)
    assert changed == ["n_layer", "n_embd", "population", "tokens_per_update", "train", "valid"]
    for cache, seed, size in (("train", 1, 3000), ("valid", 2, 900)):
        assert f"{cache} cache" in text and f"{size:,} tokens, SHA-256" in text
        assert str(fingerprint(pseudo_text(size, seed))["sha256"]) in text
    assert f"engine\n{opened.info['engine']}" in text
    for name in ("processor", "cores", "system", "device", "versions"):
        assert f"{name}\n{opened.info['machine'][name]}" in text


def test_it_lists_the_checkpoints(folder: Path, page: str) -> None:
    text = "\n".join(Reader(page).texts)
    listed = re.findall(r"<code>(epoch-\d{8})</code>", page)
    assert listed == [path.name for path in checkpoint.folders(folder)][::-1] and listed[0] == "epoch-00000014"
    about = checkpoint.load(folder).info
    best = (folder / "best").resolve().name
    marks = "latest, best" if best == listed[0] else "latest"
    figures = f"{about['validation']:.4f}\n{about['validation_exact']:.4f}"
    assert f"epoch-00000014\n{marks}\n1,344\n{duration(about['seconds'])}\n{figures}" in text


def test_its_figures_are_the_panels(folder: Path, page: str) -> None:
    reader = Reader(page)
    titles = [panel.title for panel in panels(compose([folder]))]
    assert [value for tag, name, value in reader.attributes if (tag, name) == ("svg", "aria-label")] == titles
    assert all(title in reader.texts for title in titles)
    assert reader.texts.count("bits per byte") >= 4 and "tokens read by the population" in reader.texts
    # The style sheet defines the colours, which change with the scheme.
    figures = page[page.index('<div class="figures">') : page.index("<h2>Config</h2>")]
    assert not any(colour in figures.lower() for colour in (INK, MUTED, GRID, COLOURS[0]))
    assert {"--ink", "--muted", "--grid", "--run"} == set(re.findall(r"var\((--\w+)\)", figures))
    style = page[: page.index("</style>")]
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)
    for name in ("--ink", "--muted", "--grid", "--run", "--page", "--card"):
        assert f"{name}: #" in light and f"{name}: #" in dark
    names = [value for _, name, value in reader.attributes if name == "id"]
    assert names and len(names) == len(set(names))
    pointed = re.findall(r'(?:href="|url\()#([^")]+)', figures)
    assert pointed and set(pointed) <= set(names)


def test_it_needs_nothing_from_outside(page: str) -> None:
    reader = Reader(page)
    assert "://" not in page and "@import" not in page and "<script" not in page
    loaded = [(tag, name, value) for tag, name, value in reader.attributes if name in ("src", "href", "xlink:href")]
    assert loaded and all(value.startswith(("#", "data:image/png;base64,")) for _, _, value in loaded)
    assert all(value.startswith("#") for value in re.findall(r"url\(([^)]*)\)", page))


def test_a_run_in_progress_with_a_damaged_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(folder, run, symlinks=True)
    about = run / "epoch-00000014" / "checkpoint.json"
    about.write_text(about.read_text().replace('"epoch": 14', '"epoch": 15'))
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:10]) + b'{"epoch": 10, ')
    text = "\n".join(Reader(report.page(run)).texts)
    assert "at epoch 9 of 14" in text
    assert "epoch-00000014\nlatest" in text and "damaged: checkpoint.json is not valid" in text


def test_a_run_of_another_kind(tmp_path: Path) -> None:
    lines = [{"epoch": e, "tokens": 100 * e, "validation": 5.0 - e, "validation_exact": 5.5 - e} for e in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.toml").write_text("[transformer]\nheads = 4\n")
    text = "\n".join(Reader(report.page(tmp_path)).texts)
    assert "last and best validation, after 2 epochs\n3.0000\n3.5000" in text and "[transformer]\nheads\n4" in text
    assert "no config.toml names a validation cache" in text and "The run has no checkpoint yet" in text
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "tokens": 2}\n')
    (tmp_path / "config.toml").unlink()
    text = "\n".join(Reader(report.page(tmp_path)).texts)
    assert "There was no validation yet." in text and "The run has no config.toml." in text


def test_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report.html"
    assert main(["report", str(folder), "-o", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == report.page(folder)
    capsys.readouterr()
    for arguments, part in (
        ([str(folder), "-o", str(output)], "report.html exists; it must be a new file"),
        ([str(folder), "-o", str(tmp_path / "report.pdf")], "end with .html"),
        ([str(tmp_path), "-o", str(tmp_path / "b.html")], "is not a run's; it must have a metrics.jsonl"),
    ):
        assert main(["report", *arguments]) == 2
        assert part in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(folder), "-o", str(output), "--force"]) == 2
    assert "nanoegg-mlx[plot]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for e in range(20_000):
            losses = {"loss_mean": 5 + generator.normal(), "loss_min": 3.0, "loss_max": 7.0, "loss_std": 0.5}
            line = {"epoch": e, "tokens": e, "seconds": e / 10, **losses, "tokens_per_second": 1e6 + generator.normal()}
            file.write(json.dumps(line) + "\n")
    page = report.page(tmp_path)
    assert "Each point is the mean of up to 32 epochs" in page and len(page) < 600_000
    assert curves.open_run(tmp_path).curves.lines == 20_000
