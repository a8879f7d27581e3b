"""metrics.jsonl: its lines, its continuation, bounded memory; and the display on the terminal."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import termios
import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Trainer, init_params, validate
from nanoegg_mlx.core.params import leaves
from nanoegg_mlx.show import display
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.metrics import WEIGHT_EDGES, MetricsFile, encode, iterate, read_metrics, weight_histogram
from nanoegg_mlx.store.tokens import load_tokens
from tests.tiny import resume, tiny_config, tiny_run

EVERY_EPOCH = {
    "epoch", "tokens", "loss_mean", "loss_min", "loss_max", "loss_std", "ties", "moved_matrix", "moved_vector",
    "alpha", "threshold", "tokens_per_second", "generate_seconds", "update_seconds", "exchange_seconds",
    "sharded", "wire_bytes", "validation",
    "validation_exact", "seconds", "rss_mb",
}  # fmt: skip


def test_weight_bins_cover_every_value_once() -> None:
    values = [value for low, high in itertools.pairwise(WEIGHT_EDGES) for value in range(low, high)]
    assert values == list(range(-127, 128)) and len(WEIGHT_EDGES) == 54
    widths = np.diff(WEIGHT_EDGES)
    assert np.array_equal(widths, widths[::-1]) and set(widths[2:-2]) == {5} and widths[0] == widths[-1] == 1


def test_weight_histogram() -> None:
    config = Config(n_layer=2, n_embd=8, vocab_size=50)
    params = init_params(config)
    params["emb"] = mx.array(np.resize(np.arange(-127, 128), params["emb"].shape).astype(np.int8))
    matrices = [leaf.name for leaf in leaves(config) if leaf.kind == "matrix"]
    values = np.concatenate([np.array(params[name], np.int64).ravel() for name in matrices])
    counts = weight_histogram(config, params)
    assert counts == np.histogram(values, WEIGHT_EDGES)[0].tolist() and sum(counts) == len(values)
    assert counts[0] >= 1 and counts[-1] >= 1


def test_lines_are_the_epochs_figures(tmp_path: Path) -> None:
    folder = tiny_run(tmp_path)
    lines = read_metrics(folder / "metrics.jsonl")
    config = tiny_config(tmp_path)
    trainer = Trainer(config, load_tokens(config.train))
    assert [line["epoch"] for line in lines] == list(range(13))
    for line in lines[1:]:
        before = {name: np.array(value) for name, value in trainer.params.items()}
        result = trainer.step()
        after = {name: np.array(value) for name, value in trainer.params.items()}
        losses = -result.scores / 16 / config.tokens_per_update
        assert set(line) - {"weights"} == EVERY_EPOCH
        assert line["tokens"] == line["epoch"] * 96
        assert (line["loss_min"], line["loss_max"]) == (losses.min(), losses.max())
        # These are integer sums, rounded once.
        assert line["loss_mean"] == pytest.approx(losses.mean(), rel=1e-14)
        assert line["loss_std"] == pytest.approx(losses.std(), rel=1e-12)
        assert (line["exchange_seconds"], line["wire_bytes"], line["sharded"]) == (0, 0, False)
        assert line["ties"] == np.mean(result.scores[0::2] == result.scores[1::2])
        for kind in ("matrix", "vector"):
            names = [leaf.name for leaf in leaves(config) if leaf.kind == kind]
            changed = sum(np.count_nonzero(before[name] != after[name]) for name in names)
            assert line[f"moved_{kind}"] == changed / sum(before[name].size for name in names)
        assert (line["alpha"], line["threshold"]) == (result.alpha, result.threshold)
        assert line["tokens_per_second"] == pytest.approx(96 / (line["generate_seconds"] + line["update_seconds"]))
        assert line["rss_mb"] > 10 and line["seconds"] > 0
        if line["epoch"] in (5, 10, 12):
            assert line["validation"] == validate(trainer.params, load_tokens(config.valid), config)[1]
            assert line["weights"] == weight_histogram(config, trainer.params)
        else:
            assert line["validation"] is None and line["validation_exact"] is None and "weights" not in line
    assert lines[0]["weights"] == weight_histogram(config, init_params(config))
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_resumed_metrics_have_no_gap_and_no_duplicate(tmp_path: Path) -> None:
    folder = tiny_run(tmp_path, num_epochs=10)
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    checkpoint.remove(folder / "epoch-00000010")  # as after a crash: the newest checkpoint is older than the metrics
    path.write_bytes(whole[:-7])
    resume(folder, {"num_epochs": 11})
    lines = read_metrics(path)
    assert [line["epoch"] for line in lines] == list(range(12))
    assert path.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[:9]))


def lines_of(*validated: int, epochs: int) -> list[dict[str, Any]]:
    return [{"epoch": e, "tokens": e, "validation": float(e) if e in validated else None} for e in range(epochs)]


def test_metrics_file_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = lines_of(0, 40, 80, 95, epochs=100)
    content = [encode(line) for line in lines]
    content[60] = b"not JSON\n"  # before the last validation: never read
    path.write_bytes(b"".join(content) + b'{"epoch": 100, "tok')
    file = MetricsFile(path, 90)
    assert file.last == lines[90] and file.validations == [lines[0], lines[80]]
    file.append({"epoch": 91, "validation": 7.0})
    file.close()
    assert path.read_bytes() == b"".join(content[:91]) + b'{"epoch": 91, "validation": 7.0}\n'
    assert file.validations == [lines[0], {"epoch": 91, "validation": 7.0}]
    with pytest.raises(InputError, match=rf"at byte {len(b''.join(content[:60]))} of .* is damaged"):
        MetricsFile(path, 70)
    assert len(path.read_bytes().splitlines()) == 92

    path.write_bytes(
        b"".join(content[:3]) + b'{"no": "epoch"}\n'
    )  # a damaged last line is treated as an incomplete one
    file = MetricsFile(path, 5)
    assert file.last == lines[2] and file.validations == [lines[0]]
    file.close()
    assert path.read_bytes() == b"".join(content[:3])
    for start in (b"", b"{"):
        path.write_bytes(start)
        file = MetricsFile(path, 5)
        assert file.last is None and file.validations == []
        file.close()
        assert path.read_bytes() == b""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    line = {**dict.fromkeys(EVERY_EPOCH, 1.5), "weights": list(range(53))}
    file.append(line)
    tracemalloc.start()
    try:
        for epoch in range(3000):
            file.append({**line, "epoch": epoch})
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()
    file.close()
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 3001


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    content = [encode(line) for line in lines_of(0, epochs=5)]
    path.write_bytes(b"".join(content) + b'{"epoch": 5')
    assert list(iterate(path)) == read_metrics(path) == lines_of(0, epochs=5)
    path.write_bytes(b"".join(content) + b"half of a line\n")
    assert len(read_metrics(path)) == 5
    damages = [b"{", b"[1]", b"3", b'"epoch"', b"", b"[" * 9999, b'{"epoch": "x"}', b'{"epoch": 1, "tokens": "x"}',
               b'{"epoch": 1, "seconds": null}', b'{"epoch": 1, "validation": [2]}']  # fmt: skip
    for damage in damages:
        path.write_bytes(b"".join([*content[:2], damage, b"\n", *content[2:]]))
        with pytest.raises(InputError, match=r"Line 3 of .*metrics\.jsonl is damaged"):
            read_metrics(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_metrics(tmp_path / "none")


def test_plain_lines_are_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    shown = display.Display(Config(num_epochs=400), 0)
    line: dict[str, Any] = {**dict.fromkeys(EVERY_EPOCH, 0.5), "validation": None}
    for epoch in range(1, 401):  # 100 epochs a second
        now = epoch / 100
        shown.record({**line, "epoch": epoch, "validation": 4.25 if epoch % 150 == 0 else None})
    shown.close()
    printed = capsys.readouterr().err.splitlines()
    losses = [int(text.split(":")[0].removeprefix("epoch ")) for text in printed if "loss 0.500" in text]
    assert losses == [1, 51, 101, 150, 200, 250, 300, 350, 400]
    validations = [text for text in printed if "validation 4.2500 bits per byte (exact 0.5000)" in text]
    assert [text.split(":")[0] for text in validations] == ["epoch 150", "epoch 300"]
    assert len(printed) == len(losses) + 2
    assert "00:03 left" in printed[1] and "00:00 left" in printed[-1]
    assert "moved 50.0% of matrices, 50.0% of vectors, threshold 0.03 sd" in printed[0]


def test_fitting() -> None:
    assert display.fitting(["abc", "de", "f"], 20) == "abc, de, f"
    assert display.fitting(["abc", "de", "f"], 8) == "abc, de"
    assert display.fitting(["abc", "de", "f"], 7) == "abc"
    assert display.fitting(["abc"], 2) == ""


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_terminal_shows_whole_lines(tmp_path: Path, columns: int) -> None:
    config = tiny_config(tmp_path, num_epochs=300, validate_every=100, checkpoint_every=0)
    (tmp_path / "c.toml").write_text(config.to_toml())
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "nanoegg_mlx.cli", "train", f"--config={tmp_path}/c.toml"]
    with subprocess.Popen(command, stderr=slave, stdout=subprocess.DEVNULL, env=environment) as process:
        os.close(slave)
        output = b""
        try:
            while piece := os.read(master, 1 << 16):
                output += piece
        except OSError:  # Linux's end of a terminal
            pass
    os.close(master)
    assert process.returncode == 0
    drawn = [text for text in re.split(r"[\r\n]|\x1b\[A", output.decode()) if "|" in text or "moved" in text]
    assert any("/300 [" in text and "loss" in text for text in drawn)
    assert all(len(text) <= columns for text in drawn), max(drawn, key=len)
    assert any("of vectors" in text for text in drawn) and ("losses" in output.decode()) == (columns == 140)
    assert ("tokens/s" in output.decode()) == (columns >= 80)
    assert "epoch 200: validation" in output.decode()


def test_tailing_sees_whole_lines(tmp_path: Path) -> None:
    """A concurrent reader sees only whole lines, and at most one incomplete line at the end."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    for epoch in range(200):
        file.append({"epoch": epoch, "validation": None, "text": "x" * epoch})
        assert [json.loads(text)["epoch"] for text in path.read_text().splitlines()] == list(range(epoch + 1))
    file.close()
