"""Caches, lanes and batches, and the errors for unusable caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Trainer
from nanoegg_mlx.store.tokens import Lanes, check_vocabulary, checked_tokens, load_tokens


def test_lanes_by_hand() -> None:
    # 3 lanes; segments = (23 - 3) // (2 * 3) = 3; lanes of 3 * 2 + 1 = 7 tokens.
    lanes = Lanes(np.arange(23, dtype=np.uint8), Config(population=6, tokens_per_update=2))
    assert lanes.segments == 3
    assert lanes.lanes.tolist() == [list(range(0, 7)), list(range(7, 14)), list(range(14, 21))]
    inputs, targets = lanes.batch(1)
    assert inputs.tolist() == [[2, 3], [9, 10], [16, 17]]
    assert targets.tolist() == [[3, 4], [10, 11], [17, 18]]
    assert lanes.batch(4)[0].tolist() == inputs.tolist()


def test_lanes_are_views() -> None:
    tokens = np.zeros(1000, np.uint8)
    assert np.shares_memory(Lanes(tokens, Config(population=4, tokens_per_update=5)).batch(3)[0], tokens)


def test_the_shortest_corpus() -> None:
    config = Config(population=8, tokens_per_update=5)
    assert Lanes(np.ones(4 * 6, np.uint8), config).segments == 1
    with pytest.raises(InputError) as caught:
        Lanes(np.ones(4 * 6 - 1, np.uint8), config)
    assert all(part in str(caught.value) for part in ["23 tokens", "population = 8", "at least 24", "at most 3 lanes"])


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.zeros(9, np.int32), ["int32", "1-D uint8"]),
        (np.zeros((3, 3), np.uint8), ["2-D", "(3, 3)", "1-D uint8"]),
        (np.zeros((), np.uint8), ["0-D", "1-D uint8"]),
    ],
)
def test_wrong_arrays(tmp_path: Path, array: np.ndarray, parts: list[str]) -> None:
    np.save(tmp_path / "t.npy", array)
    for call in (lambda: load_tokens(tmp_path / "t.npy"), lambda: checked_tokens(array)):
        with pytest.raises(InputError) as caught:
            call()
        assert all(part in str(caught.value) for part in parts)
    with pytest.raises(InputError):
        Trainer(Config(population=2), array)


def test_damaged_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npy"
    np.save(whole, np.ones(5000, np.uint8))
    content = whole.read_bytes()
    for size in (0, 5, 60, 128, 4000, len(content) - 1):
        (tmp_path / "cut.npy").write_bytes(content[:size])
        with pytest.raises(InputError, match=r"cut\.npy"):
            load_tokens(tmp_path / "cut.npy")
    np.savez(tmp_path / "z.npz", a=np.ones(3, np.uint8))
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    for name in ("z.npz", "o.npy", "missing.npy"):
        with pytest.raises(InputError, match=name):
            load_tokens(tmp_path / name)
    assert np.array_equal(load_tokens(whole), np.ones(5000, np.uint8))


@pytest.mark.parametrize(
    "shape",
    ["(9223372036854775808,)", "(18446744073709551616,)", "(4611686018427387904,)", "(-1,)", "(True,)", "(None,)",
     "(1.5,)", "('a',)", "((1,),)", "(1e5,)", "(2**62,)", "(" + "9" * 5000 + ",)", "(" * 400, "(\0,)", "*", "(1,'"],
)  # fmt: skip
def test_headers_with_impossible_shapes(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(99)
    (tmp_path / "t.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"^The token cache .*t\.npy is .*; it must be a 1-D uint8 \.npy file\.$"):
        load_tokens(tmp_path / "t.npy")


def test_bytes_outside_the_vocabulary() -> None:
    tokens = np.array([0, 5, 9, 3], np.uint8)
    check_vocabulary(tokens, 10)
    with pytest.raises(InputError, match="token is 9; it must be from 0 to 8"):
        check_vocabulary(tokens, 9)


def test_a_missing_cache_names_the_path_that_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"token cache a/b\.npy \({tmp_path}/a/b\.npy\) does not exist"):
        load_tokens("a/b.npy")
    with pytest.raises(InputError, match=rf"token cache {tmp_path}/c\.npy does not exist"):
        load_tokens(tmp_path / "c.npy")
