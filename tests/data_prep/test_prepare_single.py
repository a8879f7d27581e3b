"""A single text file: its parts, and the command that trains on them."""

import gzip
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import next_step
from data_prep.__main__ import main
from data_prep.next_step import next_command
from data_prep.sources import Fractions, files_source
from nanoegg_mlx import cli


def parts_of(path: Path, valid: float, test: float = 0) -> list[str]:
    source = files_source([path], "text", Fractions(valid, test))
    found: dict[str, bytes] = {}
    for split, piece in source.read(source):
        found[split] = found.get(split, b"") + piece.tokens.tobytes()
    assert list(found) == source.splits and all(part[0] == 0 for part in found.values())
    return [part[1:].decode() for part in found.values()]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".txt.gz"])
def test_lines_then_words_then_characters(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"

    def write(text: str) -> None:
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())

    write("".join(f"line {i}\n" for i in range(1000)))
    train, valid = parts_of(path, 0.1)
    assert train.endswith("\n") and valid.startswith("line ") and abs(len(valid) - 889) < 20
    train, valid, test = parts_of(path, 0.2, 0.1)
    assert valid.startswith("line ") and test.startswith("line ") and test.endswith("line 999\n")
    write("To be, or not to be, that is the question.\n")
    assert parts_of(path, 0.1) == ["To be, or not to be, that is the ", "question.\n"]
    write("€" * 10)
    assert parts_of(path, 0.1) == ["€" * 9, "€"]


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=100, max_size=300), st.floats(0.01, 0.9), st.booleans())
def test_the_parts_are_the_whole_text(tmp_path_factory, text, valid, three):
    path = tmp_path_factory.mktemp("single") / "a.txt"
    path.write_bytes(text.encode())
    parts = parts_of(path, valid, 0.05 if three else 0)
    assert "".join(parts) == text and all(parts) and len(parts) == 2 + three


def test_too_short_to_split_and_kept_whole(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("x")
    out = tmp_path / "out"
    assert main(["--source", str(path), "--out", str(out)]) == 2
    assert "a.txt has 1 bytes; it must have more to be split into 2 parts" in capsys.readouterr().err
    assert not out.exists()
    assert main(["--source", str(path), "--valid-fraction", "0", "--out", str(out)]) == 0
    assert np.load(out / "a_train.npy").tobytes() == b"\0x"
    path.write_bytes(b"ab\xff" + b"cd\n" * 9)
    assert main(["--source", str(path), "--out", str(tmp_path / "o2")]) == 2
    assert "a.txt is not valid UTF-8 at byte 2;" in capsys.readouterr().err


@pytest.mark.parametrize("size", [43, 5000, 60_000])
def test_the_next_command_trains(tmp_path, capsys, monkeypatch, size):
    text = ("To be, or not to be, that is the question.\n" * (size // 43 + 1))[:size]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my input.txt").write_text(text)
    assert main(["--source", str(tmp_path / "my input.txt"), "--out", str(tmp_path / "my data")]) == 0
    *_, remark, line = capsys.readouterr().out.splitlines()
    assert "my input.txt is a single document, split by position: train has bytes 0 to " in remark
    words = shlex.split(line.removeprefix("Next: "))
    assert words[:3] == ["nanoegg", "train", "--config"] and words[3].endswith("configs/quickstart.toml")
    assert cli.main([*words[1:], "--num-epochs", "1", "--sample-bytes", "0"]) == 0
    assert (tmp_path / "checkpoints" / "quickstart" / "metrics.jsonl").exists()


def test_the_next_command_of_other_sets(tmp_path, monkeypatch):
    def command(train: int, valid: int | None) -> str | None:
        sizes = {"train": train} | ({"valid": valid} if valid else {})
        entries = {split: {"file": f"x_{split}.npy", "bytes": size} for split, size in sizes.items()}
        return next_command({"splits": entries}, Path("data"))

    caches = "--train data/x_train.npy --valid data/x_valid.npy"
    whole = f"nanoegg train --config configs/quickstart.toml {caches}"
    assert command(10**9, 10**6) == whole
    assert command(51 * 256, 2048) == whole
    assert command(51 * 256 - 1, 2047) == f"{whole} --population 4096 --validation-batch-size 1023"
    assert command(10**9, None) is None and command(1, 1) is None
    monkeypatch.setattr(next_step, "_config", lambda: None)
    assert command(10**9, 10**6) == f"nanoegg train {caches}"
