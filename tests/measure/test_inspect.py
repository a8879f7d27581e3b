"""Inspection: figures of hand-made parameters, and activations against the oracle's own pass through the network."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, init_params
from nanoegg_mlx.cli import main
from nanoegg_mlx.core.model import UNPERTURBED, forward
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.measure.inspect import KINDS, inspect_activations, inspect_params
from tests import oracle
from tests.tiny import train, work_in
from tests.traces import pseudo_text

CONFIG = Config(n_layer=2, n_embd=12, vocab_size=128, population=2)


def test_parameters_by_hand() -> None:
    values = np.array([[-127] * 4, [127, 127, 0, 0], [1, 2, 3, 4]], np.int8)
    stacked = np.stack([np.zeros((2, 2), np.int8), np.array([[127, -127], [126, -128]], np.int8)])
    params = {"blocks.att.Uf": mx.array(stacked), "emb": mx.array(values)}
    whole, first, second, emb = inspect_params(params)
    assert [(leaf.name, leaf.layer, leaf.shape) for leaf in (whole, first, second, emb)] == [
        ("blocks.att.Uf", None, (2, 2, 2)),
        ("blocks.att.Uf", 0, (2, 2)),
        ("blocks.att.Uf", 1, (2, 2)),
        ("emb", None, (3, 4)),
    ]
    assert (first.mean, first.std, first.saturated, first.entropy) == (0, 0, 0, 0)
    assert (second.saturated, second.entropy, second.mean) == (0.5, 2.0, -0.5)
    assert whole.saturated == 0.25 and whole.entropy == pytest.approx(0.5 * 1 + 0.5 * 3)
    assert emb.saturated == 0.5
    assert emb.mean == pytest.approx(values.mean()) and emb.std == pytest.approx(values.std())
    shares = np.array([4, 2, 2, 1, 1, 1, 1]) / 12
    assert emb.entropy == pytest.approx(-(shares * np.log2(shares)).sum())


def expected_activations(params: Params, rows: np.ndarray) -> dict[tuple[str, int], list[np.ndarray]]:
    """Section 4 once more in NumPy: every activation of every token."""
    p = {name: np.array(value).astype(np.int64) for name, value in params.items()}
    seen: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    L, D = p["blocks.att.bf"].shape

    def matmul(W: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.clip((W @ x) // (16 * math.isqrt(len(x))), -127, 127)

    for row in rows:
        state = np.zeros((L, D), np.int64)
        for token in row:
            state = state * (token != 0)
            x = p["emb"][token]
            for l in range(L):
                leaf = {name.removeprefix("blocks."): value[l] for name, value in p.items() if name[:6] == "blocks"}
                y = oracle.norm(x, leaf["ln1.weight"])
                f = (
                    np.clip(matmul(leaf["att.Wf"], y) + matmul(leaf["att.Uf"], state[l]) + leaf["att.bf"], -127, 127)
                    + 127
                )
                g = (f * state[l]) >> 8
                c = np.clip(matmul(leaf["att.Wh"], y) + matmul(leaf["att.Uh"], g) + leaf["att.bh"], -127, 127)
                state[l] = state[l] + ((f * (c - state[l])) >> 8)
                r = np.clip(x + state[l], -127, 127)
                z = oracle.norm(r, leaf["ln2.weight"])
                hidden = matmul(leaf["mlp.0.weight"], z)
                for name, value in {
                    "x": x,
                    "y": y,
                    "f": f,
                    "c": c,
                    "h": state[l],
                    "r": r,
                    "z": z,
                    "hidden": hidden,
                }.items():
                    seen[name, l].append(value.copy())
                x = np.clip(r + matmul(leaf["mlp.1.weight"], hidden), -127, 127)
            y = oracle.norm(x, p["ln_out.weight"])
            for name, value in {"x": x, "y": y, "logits": matmul(p["head"], y)}.items():
                seen[name, L].append(value)
    return seen


def wild(params: Params) -> Params:
    """Weights over the whole range in the first layer, so that it saturates, and small embeddings of some bytes."""
    random = np.random.default_rng(0)
    changed = {name: np.array(value) for name, value in params.items()}
    for name, value in changed.items():
        if name.startswith("blocks."):
            value[0] = random.integers(-127, 128, value[0].shape)
    changed["emb"][60:] = 0
    changed["emb"][60:, 3] = 2
    return {name: mx.array(value) for name, value in changed.items()}


@pytest.mark.parametrize("make", [lambda params: params, wild], ids=["initial", "wild"])
def test_activations_against_a_plain_loop(make: object) -> None:
    assert callable(make)
    params = make(init_params(CONFIG))
    rows = (pseudo_text(120, 4) % 128).reshape(5, 24)
    rows[2, 7] = 0
    done: list[int] = []
    found = inspect_activations(params, CONFIG, rows, done.append)
    expected = expected_activations(params, rows)
    assert done == [5] * 24
    assert [(a.name, a.layer) for a in found] == list(expected)
    assert {a.name for a in found} == set(KINDS)
    for a in found:
        values = np.array(expected[a.name, a.layer])
        low, high = (0, 254) if a.name == "f" else (-127, 127)
        assert (a.low, a.high) == ((values == low).mean(), (values == high).mean())
        assert a.mean_abs == pytest.approx(np.abs(values).mean(), rel=1e-12)
        if a.name in ("x", "r"):
            assert a.zero_divisors == (np.abs(values).sum(axis=1) < 12).mean()
        else:
            assert a.zero_divisors is None
    if make is wild:
        figures = {(a.name, a.layer): a for a in found}
        assert figures["f", 0].low > 0 < figures["f", 0].high and figures["x", 0].zero_divisors > 0.5


def test_the_tap_changes_nothing() -> None:
    """Logits and states are the same with and without a tap."""
    params = init_params(CONFIG)
    state = mx.array(np.random.default_rng(3).integers(-127, 128, (2, 12)).astype(np.int8))
    seen: list[tuple[int, list[str]]] = []
    tapped = forward(
        params, UNPERTURBED, state, mx.array(65), lambda layer, /, **values: seen.append((layer, list(values)))
    )
    plain = forward(params, UNPERTURBED, state, mx.array(65))
    assert all(np.array_equal(np.array(a), np.array(b)) for a, b in zip(tapped, plain, strict=True))
    in_layer = ["x", "y", "last", "f", "g", "c", "h", "r", "z", "hidden"]
    assert seen == [(0, in_layer), (1, in_layer), (2, ["x", "y", "logits"])]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    work_in(tmp_path, monkeypatch)
    config = CONFIG.replace(
        population=8, tokens_per_update=5, train="train.npy", valid="valid.npy", checkpoints="runs", name="t",
        num_epochs=2, validation_batch_size=4,
    )  # fmt: skip
    train(config)
    return "runs/t"


def test_the_command(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", trained, "--json", "--rows=3", "--tokens=9"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["epoch"] == 2 and about["text"] == "valid.npy"
    assert len(about["parameters"]) == 13 + 10 * 2 and len(about["activations"]) == 8 * 2 + 3

    assert main(["inspect", trained]) == 0
    out = capsys.readouterr().out
    assert "blocks.mlp.0.weight" in out and "layer 1" not in out and "residual stream" in out
    assert "6 rows of 64 tokens of valid.npy" in out
    assert main(["inspect", trained, "--layers", "--rows=2"]) == 0
    assert "layer 1" in capsys.readouterr().out

    Path("valid.npy").unlink()
    assert main(["inspect", trained]) == 0
    assert "valid.npy does not exist" in capsys.readouterr().out
    Path("note.txt").write_text("a note")
    assert main(["inspect", trained, "--text=note.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "note.txt"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--text=none.txt"], ["none.txt cannot be read"]),
        (["--rows=0"], ["--rows is 0", "at least 1"]),
        (["--tokens=-3"], ["--tokens is -3", "at least 1"]),
        (["--rows=201"], ["--rows is 201", "400 tokens", "1 to 200"]),
        (["--text=short.npy"], ["short.npy has fewer than 2 tokens"]),
        (["--text=tiny.txt"], ["195", "128"]),
    ],
)
def test_mistakes(trained: str, capsys: pytest.CaptureFixture[str], options: list[str], parts: list[str]) -> None:
    Path("tiny.txt").write_text("é", encoding="utf-8")
    np.save("short.npy", np.zeros(1, np.uint8))
    capsys.readouterr()
    assert main(["inspect", trained, *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
