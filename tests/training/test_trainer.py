"""The trainer: an epoch's result, epochs as transactions, and continuing from the content of a checkpoint."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Trainer, init_params
from nanoegg_mlx.core.params import Params, leaves
from nanoegg_mlx.core.update import alpha_at, threshold_at
from nanoegg_mlx.engines import make_engine
from tests.traces import ENGINES, pseudo_text

TEXT = pseudo_text(4000, 1)
SMALL = Config(n_layer=2, n_embd=12, population=8, tokens_per_update=7, num_perturbations=4, noise_reuse=2)
NUDGED = Config(n_layer=2, n_embd=12, population=8, tokens_per_update=7, perturb="activations")


def same(left: Params, right: Params) -> bool:
    return all(np.array_equal(np.array(left[name]), np.array(right[name])) for name in right)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_result_of_an_epoch(engine: str) -> None:
    trainer = Trainer(SMALL.replace(engine=engine), TEXT)
    for epoch in range(3):
        before = trainer.params
        result = trainer.step()
        assert (result.epoch, trainer.epoch, result.tokens) == (epoch, epoch + 1, 56)
        assert result.scores.shape == (8,) and result.scores.dtype == np.int32
        assert result.fitness.shape == (4,) and result.fitness.dtype == np.int8
        assert np.array_equal(result.fitness, np.sign(result.scores[0::2] - result.scores[1::2]))
        assert np.array_equal(result.losses, -result.scores / (16 * 7))
        assert result.alpha == alpha_at(SMALL, epoch) and result.threshold == threshold_at(SMALL, epoch)
        for kind in ("matrix", "vector"):
            names = [leaf.name for leaf in leaves(SMALL) if leaf.kind == kind]
            moved = sum(int((np.array(before[name]) != np.array(trainer.params[name])).sum()) for name in names)
            assert result.moved[kind] == moved / sum(before[name].size for name in names)
        assert result.moved["matrix"] > 0
        assert result.generate_seconds > 0 and result.update_seconds > 0 and result.tokens_per_second > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_it_continues_bit_for_bit(engine: str) -> None:
    config = SMALL.replace(engine=engine)
    whole, first = Trainer(config, TEXT), Trainer(config, TEXT)
    for _ in range(5):
        whole.step()
    for _ in range(2):
        first.step()
    second = Trainer(config, TEXT, params=first.params, states=first.states, epoch=first.epoch)
    for _ in range(3):
        result = second.step()
    assert result.epoch == 4 and second.epoch == whole.epoch
    assert same(second.params, whole.params)
    assert np.array_equal(np.array(second.states), np.array(whole.states))


@pytest.mark.parametrize("engine", ENGINES)
def test_averaged_parameters(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They follow from the parameters of every epoch, change nothing else, and continue bit for bit."""
    monkeypatch.setattr("nanoegg_mlx.core.averaging.shift_at", lambda epochs: 2)
    plain = Trainer(NUDGED.replace(engine=engine), TEXT)
    config = NUDGED.replace(engine=engine, average=True)
    trainer = Trainer(config, TEXT)
    sums = {name: np.array(value).astype(int) * 4 + 2 for name, value in plain.params.items()}
    for _ in range(4):
        plain.step()
        before, model = trainer.sums, trainer.propose().model
        assert trainer.sums is before
        trainer.step()
        for name, value in plain.params.items():
            sums[name] += np.array(value) - sums[name] // 4
        assert same(trainer.params, plain.params) and plain.model is plain.params
        assert same(trainer.model, {name: value // 4 for name, value in sums.items()}) and same(model, trainer.model)
        assert not same(trainer.model, trainer.params)
        kept = {"params": trainer.params, "states": trainer.states, "epoch": trainer.epoch}
        trainer = Trainer(config, TEXT, sums=trainer.sums, **kept)
    assert same(Trainer(config, TEXT, **kept).model, trainer.params)
    with pytest.raises(InputError, match="average is False; it must be True, since the state has sums"):
        Trainer(config.replace(average=False), TEXT, sums=trainer.sums)


@pytest.mark.parametrize("engine", ENGINES)
def test_members_are_scored_in_any_portions(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, threads and spans of members bound memory and time; the result does not depend on them."""
    config = SMALL.replace(engine=engine, population=24, group_size=4)
    whole = Trainer(config, TEXT)
    expected = [whole.step().scores for _ in range(3)]
    for changes, span in (({"chunk": 2}, None), ({"chunk": 10, "threads": 3}, None), ({"threads": 1}, 70)):
        trainer = Trainer(config.replace(**changes), TEXT)
        if span:
            monkeypatch.setattr("nanoegg_mlx.training.estimators._SPAN_BYTES", span)
        for scores in expected:
            assert np.array_equal(trainer.step().scores, scores)
        assert same(trainer.params, whole.params)
        assert np.array_equal(np.array(trainer.states), np.array(whole.states))


def test_an_interrupted_epoch_never_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(SMALL, TEXT)
    trainer.step()
    params, states = trainer.params, np.array(trainer.states)

    def interrupted(*arguments: object) -> Params:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.engine, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.step()
    assert trainer.epoch == 1 and trainer.params is params
    assert np.array_equal(np.array(trainer.states), states)
    whole = Trainer(SMALL, TEXT)
    whole.step()
    assert np.array_equal(trainer.step().scores, whole.step().scores)
    assert same(trainer.params, whole.params)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engines_use_parameters_changed_in_place(engine: str) -> None:
    """A leaf that is replaced in the trainer's dict, or changed in place, is used from the next epoch on."""
    trainer = Trainer(SMALL.replace(engine=engine), TEXT)
    trainer.step()
    before = dict(trainer.params)
    for change in ("replaced", "written into"):
        if change == "replaced":
            trainer.params["head"] = trainer.params["emb"]
        else:
            trainer.params["emb"] = mx.array(trainer.params["emb"])
            trainer.propose()
            trainer.params["emb"][97:123] = mx.array(5, dtype=mx.int8)
        changed = Trainer(trainer.config, TEXT, params=dict(trainer.params), states=trainer.states, epoch=1)
        assert not same(trainer.params, before)
        assert np.array_equal(trainer.propose().result.scores, changed.propose().result.scores), change


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engines_leave_their_arguments_alone(engine: str) -> None:
    config = SMALL.replace(engine=engine)
    params = init_params(config)
    states = np.full((8, 2, 12), 3, np.int8)
    before = {name: np.array(value) for name, value in params.items()}
    tokens = np.tile(TEXT[:7], (8, 1))
    hot = make_engine(config)
    hot.score(params, range(8), 0, tokens, tokens, states)
    hot.update(params, np.array([1, -1, 0, 1], np.int8), 0)
    assert same(params, before) and (states == 3).all()


@pytest.mark.parametrize(
    ("continued", "parts"),
    [
        ({"states": np.zeros((8, 2, 11), np.int8)}, ["(8, 2, 11)", "(8, 2, 12)"]),
        ({"states": np.zeros((8, 2, 12), np.int32)}, ["int32", "int8 of shape (8, 2, 12)"]),
        ({"params": init_params(SMALL.replace(n_embd=13))}, ["blocks.att.Uf", "(2, 13, 13)", "(2, 12, 12)"]),
        ({"params": {"emb": init_params(SMALL)["emb"]}}, ["head"]),
    ],
)
def test_arguments_that_do_not_fit(continued: dict, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Trainer(SMALL, TEXT, **continued)
    assert all(part in str(caught.value) for part in parts)
