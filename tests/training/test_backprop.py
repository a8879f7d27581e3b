"""The transformer: its causal mask, its gradient, its learning, and the metrics of its run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from nanoegg_mlx import Config, init_params
from nanoegg_mlx.cli import main
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.store.metrics import read_metrics
from nanoegg_mlx.store.tokens import Lanes
from nanoegg_mlx.training import backprop
from nanoegg_mlx.training.backprop import Descent, Learner, train
from nanoegg_mlx.training.float_models import FloatMinGRU, Transformer
from tests.traces import pseudo_text

CONFIG = Config(
    n_layer=2, n_embd=16, vocab_size=128, population=16, tokens_per_update=12, validation_batch_size=5,
    train="train.npy", valid="valid.npy", checkpoints="runs", name="t", num_epochs=6, validate_every=4,
)  # fmt: skip


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("train.npy", pseudo_text(3000, 1))
    np.save("valid.npy", pseudo_text(200, 2))


def log2_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))) / math.log(2)


def test_shape_of_the_model() -> None:
    """The comparison's default: 6 layers, 256 wide, 4 heads of 64, an MLP of 1024, positions for 100 tokens."""
    model = Transformer(Config())
    shapes = {name: value.shape for name, value in tree_flatten(model.parameters())}
    assert shapes["tokens.weight"] == (256, 256) and shapes["positions.weight"] == (100, 256)
    assert shapes["encoder.layers.5.linear1.weight"] == (1024, 256) and len(model.encoder.layers) == 6
    layer = model.encoder.layers[0]
    assert layer.attention.num_heads == 4 and layer.norm_first and layer.activation is nn.gelu


def test_no_future_is_seen() -> None:
    """Other tokens from position 7 on change the logits from there on, and none before."""
    learner = Learner(CONFIG, Descent())
    inputs = np.random.default_rng(0).integers(0, 128, (3, 12)).astype(np.uint8)
    changed = inputs.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 128
    before, after = learner.logits(inputs), learner.logits(changed)
    assert before.shape == (3, 12, 128)
    assert np.array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(axis=-1).all()
    # The logits depend on the past and on the position.
    earlier = inputs.copy()
    earlier[:, 0] = (earlier[:, 0] + 1) % 128
    assert (learner.logits(earlier) != before).any(axis=-1).all()
    same = learner.logits(np.full((1, 12), 65, np.uint8))[0]
    assert (same[1:] != same[:-1]).any(axis=-1).all()


def test_the_gradient_is_the_losses() -> None:
    """Along the gradient the loss rises by its squared length; bits are those of a softmax."""
    learner = Learner(CONFIG, Descent())
    inputs, targets = Lanes(np.load("train.npy"), CONFIG).batch(3)
    loss, gradients, _ = learner.gradient(inputs, targets)
    likelihood = np.take_along_axis(log2_softmax(learner.logits(inputs)), targets[..., None].astype(int), axis=-1)
    assert loss == pytest.approx(-likelihood.mean(), rel=1e-5)

    square = sum(float(mx.sum(g * g)) for _, g in tree_flatten(gradients))
    start, losses = learner.params, []
    for step in (-0.01, 0.01):
        learner.params = tree_map(lambda p, g, step=step: p + step * g, start, gradients)
        losses.append(learner.gradient(inputs, targets).loss * math.log(2))
    assert (losses[1] - losses[0]) / 0.02 == pytest.approx(square, rel=0.01)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_add_up(micro_batch: int) -> None:
    inputs, targets = Lanes(np.load("train.npy"), CONFIG).batch(0)
    assert len(inputs) == 8
    whole, expected, _ = Learner(CONFIG, Descent()).gradient(inputs, targets)
    loss, gradients, _ = Learner(CONFIG, Descent(micro_batch=micro_batch)).gradient(inputs, targets)
    assert loss == pytest.approx(whole, rel=1e-6)
    for (name, value), (_, other) in zip(tree_flatten(gradients), tree_flatten(expected), strict=True):
        assert float(mx.linalg.norm(value - other)) <= 1e-3 * float(mx.linalg.norm(other)) + 1e-6, name


def test_two_steps_by_hand() -> None:
    """Momentum: v = m v + g, p = p - rate v."""
    learner = Learner(CONFIG, Descent(learning_rate=0.5, momentum=0.75))
    lanes = Lanes(np.load("train.npy"), CONFIG)
    expected = {name: np.array(value, np.float64) for name, value in learner.named_params().items()}
    velocity = {name: np.zeros_like(value) for name, value in expected.items()}
    for epoch in range(2):
        found = learner.gradient(*lanes.batch(epoch))
        learner.step(found)
        for name, gradient in tree_flatten(found.tree):
            velocity[name] = 0.75 * velocity[name] + np.array(gradient, np.float64)
            expected[name] -= 0.5 * velocity[name]
    for name, value in learner.named_params().items():
        assert np.array(value) == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_validation_by_windows() -> None:
    """Every byte of a row but the first, each window from nothing: against the logits themselves."""
    learner = Learner(CONFIG, Descent(micro_batch=2))
    rows = pseudo_text(150, 2).reshape(5, 30)
    total = 0.0
    for row in rows:
        for start in (0, 12, 24):
            window = row[start : start + 13]
            logits = log2_softmax(learner.logits(window[None, :-1])[0])
            total -= logits[np.arange(len(window) - 1), window[1:]].sum()
    assert learner.evaluate(rows, 12) == pytest.approx(total / 145, rel=1e-5)


def test_a_run() -> None:
    """The batches are the lanes', in order; the loss falls; the metrics have a run's format; the model is saved."""
    messages: list[str] = []
    outcome = train(CONFIG.replace(num_epochs=60, validate_every=25), Descent(learning_rate=0.3), messages.append)
    folder = Path("runs/t-transformer")
    assert (outcome.folder, outcome.stopped) == (folder, None)
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(61))
    assert [line["tokens"] for line in lines] == [8 * 12 * epoch for epoch in range(61)]
    assert [line["epoch"] for line in lines if line["validation"] is not None] == [0, 25, 50, 60]
    assert all(line["validation_exact"] == line["validation"] for line in lines)
    assert all(line["tokens_per_second"] > 0 and line["rss_mb"] > 0 for line in lines[1:])
    losses = [line["loss_mean"] for line in lines[1:]]
    assert losses[0] > 6.9 and np.mean(losses[-10:]) < 5.2
    assert lines[-1]["validation"] < 5.2 < 6.9 < lines[0]["validation"]
    assert outcome.validation == lines[-1] and messages[-1].startswith("epoch 60: validation ")

    lanes, learner = Lanes(np.load("train.npy"), CONFIG), Learner(CONFIG, Descent(learning_rate=0.3))
    for epoch in range(60):
        found = learner.gradient(*lanes.batch(epoch))
        assert found.loss == pytest.approx(losses[epoch], rel=1e-4)
        learner.step(found)
    saved = mx.load(str(folder / "model.safetensors"))
    assert isinstance(saved, dict)
    for name, value in learner.named_params().items():
        assert np.array(saved[name]) == pytest.approx(np.array(value), abs=1e-3), name
    about = json.loads((folder / "transformer.json").read_text())
    assert about["config"]["n_embd"] == 16 and about["descent"] == dataclasses.asdict(Descent(learning_rate=0.3))
    assert about["parameters"] == outcome.parameters == sum(value.size for value in saved.values())


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Each training has a new folder, and it cannot be resumed as a run."""
    Path("c.toml").write_text(CONFIG.to_toml())
    for name in ("t-transformer", "t-transformer-2"):
        options = ["--config=c.toml", "--num-epochs=1", "--learning-rate=0.2", "--json"]
        assert main(["baseline", "transformer", *options]) == 0
        about = json.loads(capsys.readouterr().out)
        assert about["run"] == f"runs/{name}" and about["epoch"] == 1 and about["validation"] > 0
        assert json.loads(Path("runs", name, "transformer.json").read_text())["descent"]["learning_rate"] == 0.2
    assert main(["train", "--resume", "runs/t-transformer"]) == 2
    assert "is not a run's; to be resumed it must" in capsys.readouterr().err


@pytest.mark.parametrize("at", ["gradient", "evaluate"])
def test_a_signal(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Ctrl-C in the middle of a gradient or a validation: finished epochs stay recorded, and the model is saved."""
    calls = 0
    original: Any = getattr(Learner, at)

    def interrupted(self: Learner, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            backprop.signal.raise_signal(backprop.signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(Learner, at, interrupted)
    assert train(CONFIG, Descent()).stopped == backprop.signal.SIGINT
    lines = read_metrics(Path("runs/t-transformer/metrics.jsonl"))
    assert len(lines) == (2 if at == "gradient" else 5) and lines[-1]["validation"] is None
    assert mx.load("runs/t-transformer/model.safetensors")


def test_a_loss_that_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.toml").write_text(CONFIG.to_toml())
    assert main(["baseline", "transformer", "--config=c.toml", "--num-epochs=50", "--learning-rate=1e30"]) == 2
    assert "learning_rate must be below 1e+30" in capsys.readouterr().err
    assert all(math.isfinite(line["loss_mean"]) for line in read_metrics(Path("runs/t-transformer/metrics.jsonl"))[1:])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--learning-rate=0"], ["learning_rate is 0.0", "above 0"]),
        (["--learning-rate=nan"], ["learning_rate is nan"]),
        (["--momentum=1"], ["momentum is 1.0", "below 1"]),
        (["--micro-batch=0"], ["micro_batch is 0", "at least 1"]),
        (["--n-embd=100"], ["n_embd is 100", "multiple of 64"]),
        (["--population=2000"], ["3000 tokens", "lanes"]),
        (["--train=none.npy"], ["none.npy"]),
        (["--validation-batch-size=150"], ["200 tokens", "1 to 100"]),
        (["--vocab-size=50"], ["A token is 122", "vocab_size is 50"]),
        (["--learning-rate=fast"], ["--learning-rate", "fast"]),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], options: list[str], parts: list[str]) -> None:
    Path("c.toml").write_text(CONFIG.to_toml())
    code = main(["baseline", "transformer", "--config=c.toml", *options])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert not Path("runs").exists()


MINGRU = CONFIG.replace(n_layer=2, n_embd=6)


def test_the_float_mingru_is_the_integer_network_without_rounding() -> None:
    """With the integer model's weights, logits and states differ by the rounding of activations only."""
    config = Config(n_layer=1, n_embd=64, population=4)
    params = init_params(config)
    model = FloatMinGRU(config)
    layer = model.layers[0]
    names = {
        "Wf": "att.Wf",
        "Uf": "att.Uf",
        "Wh": "att.Wh",
        "Uh": "att.Uh",
        "mlp0": "mlp.0.weight",
        "mlp1": "mlp.1.weight",
    }
    for name, leaf in names.items():
        setattr(layer, name, params[f"blocks.{leaf}"][0].astype(mx.float32) / 16)
    model.emb, model.head = (params[name].astype(mx.float32) / 16 for name in ("emb", "head"))
    text = np.load("train.npy")[None, :40]
    logits, state = model(mx.array(text), model.start(1))
    expected, states = make_engine(config).logits(params, text, np.zeros((1, 1, 64), np.int8))
    bits = np.array(logits) / math.log(2)
    assert np.corrcoef(bits.ravel(), expected.ravel())[0, 1] > 0.97
    assert np.abs(bits - expected / 16).mean() < 0.25
    assert np.abs(np.array(state) - states / 16).mean() < 0.25


def test_the_float_mingru_carries_its_states() -> None:
    """Two windows in a row give what one of both lengths gives; a byte 0 clears the state."""
    learner = Learner(MINGRU, Descent(optimizer="adam", learning_rate=0.01), "mingru")
    model, text = FloatMinGRU(MINGRU), mx.array(np.load("train.npy")[None, 1:21])
    whole, _ = model(text, model.start(1))
    first, state = model(text[:, :10], model.start(1))
    second, _ = model(text[:, 10:], state)
    assert np.allclose(np.array(whole), np.array(mx.concatenate([first, second], axis=1)), atol=1e-5)
    cleared, _ = model(mx.zeros((1, 1), mx.uint8), state)
    assert np.allclose(np.array(cleared), np.array(model(mx.zeros((1, 1), mx.uint8), model.start(1))[0]), atol=1e-6)

    lanes = Lanes(np.load("train.npy"), MINGRU)
    assert learner.states.shape == (8, 2, 6) and not learner.states.any()
    found = learner.gradient(*lanes.batch(0))
    assert not learner.states.any()
    learner.step(found)
    assert learner.states.any() and np.array_equal(learner.states, found.states)


def test_the_float_mingru_learns(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.toml").write_text(MINGRU.replace(n_embd=16, num_epochs=60).to_toml())
    options = ["--optimizer=adam", "--learning-rate=0.03", "--json"]
    assert main(["baseline", "mingru", "--config=c.toml", *options]) == 0
    about = json.loads(capsys.readouterr().out)
    lines = read_metrics(Path("runs/t-mingru/metrics.jsonl"))
    assert about["run"] == "runs/t-mingru" and about["validation"] < lines[0]["validation"] - 2
    assert json.loads(Path("runs/t-mingru/mingru.json").read_text())["descent"]["optimizer"] == "adam"
    assert main(["baseline", "mingru", "--config=c.toml", "--optimizer=newton"]) == 2
    assert "optimizer is 'newton'; it must be 'sgd' or 'adam'." in capsys.readouterr().err
