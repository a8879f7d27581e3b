"""Panels have the numbers of the metrics, with baselines and notes; and the command that draws them."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from nanoegg_mlx import InputError
from nanoegg_mlx.cli import main
from nanoegg_mlx.measure import baselines
from nanoegg_mlx.show.page import compose, page, plot_runs
from nanoegg_mlx.show.panels import panels
from nanoegg_mlx.show.style import COLOURS, STYLE
from nanoegg_mlx.store.metrics import WEIGHT_EDGES, read_metrics
from tests.tiny import tiny_run
from tests.traces import pseudo_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder; tests must not change it."""
    return tiny_run(tmp_path_factory.mktemp("plot"), num_epochs=20)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """An incomplete metrics.jsonl of another program, with few numbers."""
    lines = [
        {"epoch": e, "tokens": 500 * e, "loss_mean": 8 - 0.1 * e, "validation": 7.5 if e % 4 == 0 else None,
         "seconds": 0.5 * e, "extra": {"nested": [1]}}
        for e in range(10)
    ]  # fmt: skip
    (tmp_path / "other").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 10, "tok'
    (tmp_path / "other" / "metrics.jsonl").write_text(text)
    return tmp_path / "other"


def drawn(*folders: Path) -> dict[str, Axes]:
    """The panels of a page by their titles."""
    with matplotlib.rc_context(STYLE):
        figure = page(compose(folders))
        figure.savefig(io.BytesIO(), format="png", dpi=30)
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def lines(axes: Axes) -> list[tuple[list[float], list[float]]]:
    """The data of the axes' curves."""
    return [(np.array(line.get_xdata()).tolist(), np.array(line.get_ydata()).tolist()) for line in axes.get_lines()]


def test_a_page_of_one_run(folder: Path) -> None:
    metrics = read_metrics(folder / "metrics.jsonl")
    drawing = drawn(folder)
    assert list(drawing) == [
        "Loss against tokens", "Loss against training time", "Validation, close up", "Losses over the population",
        "Entries moved by an update", "Threshold of the vote", "Matrix weights over time",
        "Matrix entries at the limits", "Ties", "Throughput", "Resident memory",
    ]  # fmt: skip
    epochs, validated = metrics[1:], [line for line in metrics if line["validation"] is not None]

    for title, key, unit in (("Loss against tokens", "tokens", 1.0), ("Loss against training time", "seconds", 1.0)):
        training, validation, *others = lines(drawing[title])
        assert training == ([line[key] / unit for line in epochs], [line["loss_mean"] for line in epochs])
        assert validation == ([line[key] / unit for line in validated], [line["validation"] for line in validated])
        text = pseudo_text(900, 2)
        figures = [baselines.unigram(text), baselines.bigram(text), baselines.gzip(text)]
        assert [y for _, y in others] == [[figure, figure] for figure in figures]
        assert [note.get_text() for note in drawing[title].texts] == [
            f"{name}\n{figure:.3f}" for figure, name in sorted(zip(figures, ("unigram", "bigram", "gzip"), strict=True))
        ]
        assert drawing[title].get_ylabel() == "bits per byte"
    assert drawing["Loss against training time"].get_xlabel() == "training time in seconds"

    figure, exact = lines(drawing["Validation, close up"])
    assert figure[1] == [line["validation"] for line in validated] and figure[0] == [0, 5, 10, 15, 20]
    assert exact[1] == [line["validation_exact"] for line in validated]
    moved = lines(drawing["Entries moved by an update"])
    for (x, y), key in zip(moved, ("moved_matrix", "moved_vector", "alpha"), strict=True):
        assert x == list(range(1, 21)) and y == [line[key] for line in epochs]
    [(_, threshold)] = lines(drawing["Threshold of the vote"])
    assert threshold[1:] == [line["threshold"] / 16 for line in epochs]
    [(x, y)] = lines(drawing["Ties"])
    assert y == [line["ties"] for line in epochs] and x == list(range(1, 21))
    [(_, y)] = lines(drawing["Throughput"])
    assert y == [line["tokens_per_second"] for line in epochs]
    [(_, y)] = lines(drawing["Resident memory"])
    assert y == [line["rss_mb"] for line in metrics]
    [(x, y)] = lines(drawing["Matrix entries at the limits"])
    assert x == [0, 5, 10, 15, 20]
    assert y == [(line["weights"][0] + line["weights"][-1]) / sum(line["weights"]) for line in validated]
    [(_, y)] = lines(drawing["Losses over the population"])
    assert y[1:] == [line["loss_mean"] for line in epochs]


def test_the_heat_map_is_the_histograms(folder: Path) -> None:
    validated = [line for line in read_metrics(folder / "metrics.jsonl") if line["validation"] is not None]
    axes = drawn(folder)["Matrix weights over time"]
    (mesh,) = [item for item in axes.collections if isinstance(item, QuadMesh)]
    array = mesh.get_array()
    assert array is not None
    cells = np.ma.filled(array.reshape(55, 5), 0)  # -127, a gap, 51 bins, a gap, 127
    counts = np.array([line["weights"] for line in validated], float).T
    density = counts / counts.sum(axis=0) / np.diff(WEIGHT_EDGES)[:, None]
    assert np.array_equal(cells[0], density[0]) and np.array_equal(cells[-1], density[-1])
    assert np.allclose(cells[2:-2], density[1:-1], rtol=1e-12)
    assert not cells[1].any() and not cells[-2].any()
    coordinates = mesh.get_coordinates()
    assert coordinates[0, :, 0].tolist() == [-0.5, 2.5, 7.5, 12.5, 17.5, 20.5]
    assert coordinates[2:54, 0, 1].tolist() == [edge - 0.5 for edge in WEIGHT_EDGES[1:-1]]


def test_runs_of_different_kinds_on_one_page(folder: Path, other: Path) -> None:
    drawing = drawn(folder, other)
    assert "Matrix weights over time: t" in drawing and "Throughput" in drawing
    axes = drawing["Loss against tokens"]
    curves_by_colour: dict[Any, int] = {}
    for line in axes.get_lines()[:4]:
        curves_by_colour[line.get_color()] = curves_by_colour.get(line.get_color(), 0) + 1
    assert curves_by_colour == {COLOURS[0]: 2, COLOURS[1]: 2}
    assert lines(axes)[2] == ([500 * e for e in range(10)], [8 - 0.1 * e for e in range(10)])
    assert lines(axes)[3] == ([0, 2000, 4000], [7.5] * 3)
    assert len(lines(axes)) == 7  # the other's config names no cache: the baselines of the first apply to both

    alone = drawn(other)
    assert list(alone) == ["Loss against tokens", "Loss against training time", "Validation, close up"]
    scene = compose([other])
    assert scene.baselines == {} and "no config.toml names a validation cache" in scene.notes[0]


def test_a_run_with_nothing_but_epoch_0(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    first = (folder / "metrics.jsonl").read_text().splitlines()[0]
    (run / "metrics.jsonl").write_text(first + "\n")
    drawing = drawn(run)
    assert list(drawing) == [
        "Loss against tokens", "Loss against training time", "Validation, close up", "Matrix weights over time",
        "Matrix entries at the limits", "Resident memory",
    ]  # fmt: skip
    assert lines(drawing["Loss against tokens"]) == [([0.0], [json.loads(first)["validation"]])]


def test_baselines_belong_to_the_validated_text(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    config = (copy / "config.toml").read_text()
    np.save(tmp_path / "changed.npy", pseudo_text(901, 2))
    for path, reason in (
        (tmp_path / "changed.npy", r"copy has no baselines: the content of .*changed\.npy has changed"),
        (tmp_path / "gone.npy", r"copy has no baselines: The token cache .*gone\.npy does not exist"),
    ):
        (copy / "config.toml").write_text(re.sub(r'valid = ".*"', f'valid = "{path}"', config))
        scene = compose([copy])
        assert scene.baselines == {} and re.search(reason, scene.notes[0]), scene.notes
    for checkpoint in copy.glob("epoch-*"):
        shutil.rmtree(checkpoint)
    (copy / "config.toml").write_text(re.sub(r'valid = ".*"', f'valid = "{tmp_path}/changed.npy"', config))
    assert compose([copy]).baselines["unigram"] == baselines.unigram(pseudo_text(901, 2))
    scene = compose([folder, copy])
    assert scene.baselines == {} and "different texts" in scene.notes[-1] and scene.labels == ["t", "copy"]
    (copy / "config.toml").write_text("[model\n")
    with pytest.raises(InputError, match=r"config\.toml cannot be read"):
        compose([copy])


def test_many_runs(folder: Path) -> None:
    scene = compose([folder] * 7)
    assert "Weight histograms are drawn for 6 runs at most" in scene.notes[-1]
    assert not [panel for panel in panels(scene) if "weights over time" in panel.title]
    assert len({(colour, marker) for _, colour, marker in scene.coloured()}) == 7
    assert set(scene.labels) == {str(folder)}


def test_command(folder: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png, svg = tmp_path / "a.png", tmp_path / "a.svg"
    assert main(["plot", str(folder), "-o", str(png)]) == 0
    assert f"{png}: t" in capsys.readouterr().out
    image = matplotlib.image.imread(png)
    assert image.shape[1] == 1500 and image.shape[0] > 1500 and 0.01 < (image[..., :3].min(axis=2) < 0.9).mean() < 0.5
    assert main(["plot", str(folder), str(other), "-o", str(svg)]) == 0
    root = ElementTree.parse(svg).getroot()
    assert root.tag.endswith("svg") and len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 100
    before = svg.read_bytes()
    assert main(["plot", str(folder), str(other), "-o", str(svg), "--force"]) == 0
    assert svg.read_bytes() == before  # the same runs give the same drawing
    capsys.readouterr()
    for arguments, part in (
        ([str(folder), "-o", str(png)], "a.png exists; it must be a new file"),
        ([str(folder), "-o", str(tmp_path / "a.gif")], "end with .png or .svg"),
        ([str(tmp_path), "-o", str(tmp_path / "b.png")], "is not a run's; it must have a metrics.jsonl"),
        ([str(folder), "-o", str(tmp_path / "none" / "b.png")], "No such file"),
    ):
        assert main(["plot", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and part in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "other"]


def test_without_matplotlib(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(folder), "-o", str(tmp_path / "a.png")]) == 2
    assert "nanoegg-mlx[plot]" in capsys.readouterr().err and not (tmp_path / "a.png").exists()


def test_plot_runs_is_a_library_call(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.svg"
    assert plot_runs([folder], output).labels == ["t"]
    before = output.read_bytes()
    with pytest.raises(InputError, match="exists; it must be a new file"):
        plot_runs([folder], output)
    plot_runs([folder], output, force=True)
    assert output.read_bytes() == before
