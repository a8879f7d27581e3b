"""Whole score() and update() calls of every instruction set: against the scalar twins, the plain Python twin, the
recorded traces and the MLX engine. Results do not depend on threads, blocks and instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Trainer, init_params, validate
from nanoegg_mlx.engines import make_engine
from tests import oracle, test_golden
from tests.engines import kernels
from tests.engines.inputs import ISAS, TWINS, native, numbers, random_params
from tests.engines.kernels import NoiseValues, epoch_noise
from tests.oracle import Oracle
from tests.test_oracle import CASES, TINY, assert_same_run, text
from tests.traces import NAMES, pseudo_text


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_traces(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOEGG_ISA", isa)
    test_golden.test_trace(name, "cpu")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_runs_equal_the_oracle(changes: dict[str, Any], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOEGG_ISA", isa)
    config = Config(**{**TINY, **changes, "engine": "cpu"})
    tokens = text(config, config.lanes * (2 * config.tokens_per_update + 1), 3)
    trainer, run = Trainer(config, tokens), Oracle(config, tokens)
    assert_same_run(trainer, run, 2)
    valid = text(config, 32, 4)
    assert np.array_equal(validate(trainer.params, valid, config)[0], oracle.validate(config, run.params, valid)[0])


@pytest.mark.parametrize("shift", range(-4, 28))
def test_scores_equal_the_scalar_twin(shift: int) -> None:
    """Extreme parameters and states; for every noise scale another width, rank, vocabulary, repetition of the noise."""
    rng = np.random.default_rng(shift + 4)
    config = Config(
        n_layer=1 + shift % 2,
        n_embd=int(rng.integers(1, 72)),
        vocab_size=int(rng.choice([1, 2, 17, 64, 255, 256])),
        rank=1 + shift % 3,
        sigma_shift=shift,
        num_perturbations=int(rng.choice([0, 2, 6])),
        seed=int(rng.integers(2**63)),
    )
    params, noise = random_params(rng, config), epoch_noise(config, 3)
    members, first = int(rng.integers(1, 20)), int(rng.integers(0, 7))
    inputs, targets = rng.integers(0, config.vocab_size, (2, members, 4)).astype(np.uint8)
    states = numbers(rng, members, config.n_layer, config.n_embd)
    for perturbed in (noise, None):
        expected, new_states, logits = kernels.naive_score(params, inputs, targets, states, perturbed, first)
        perturbation: dict[str, Any] = {"noise": perturbed and perturbed.native(), "first_member": first}
        for number, isa in enumerate(ISAS):
            weights = native.Weights(params, isa=isa)
            for block, threads in ((0, 1), (2, 2), (6, 3 + number)):
                how: dict[str, Any] = {**perturbation, "threads": threads, "block": block}
                scores, after = native.score(weights, inputs, targets, states, **how)
                assert np.array_equal(scores, expected) and np.array_equal(after, new_states), isa
            of_logits = native.logits(weights, inputs, states, **perturbation)
            assert np.array_equal(of_logits[0], logits) and np.array_equal(of_logits[1], new_states)


@pytest.mark.parametrize("changes", [{"n_embd": 1100}, {"rank": 4096, "n_embd": 2}], ids=["wide", "rank 4096"])
def test_large_models_equal_the_scalar_twin(changes: dict[str, Any]) -> None:
    """Inputs wider than a float32 sum is exact for, 4400 of them; and the highest rank, whose terms overflow int32."""
    rng = np.random.default_rng(1)
    config = Config(**{"n_layer": 1, "vocab_size": 5, "sigma_shift": -4, **changes})
    params, noise = random_params(rng, config), epoch_noise(config, 0)
    inputs = rng.integers(0, 5, (3, 2)).astype(np.uint8)
    states = numbers(rng, 3, 1, config.n_embd)
    expected = kernels.naive_score(params, inputs, inputs, states, noise)
    fitness = np.array([127, -128, 3], np.int8)
    votes = kernels.naive_votes(params, noise, fitness, use_clt=True, normalised=False)
    for isa in ISAS:
        scores, after = native.score(native.Weights(params, isa=isa), inputs, inputs, states, noise=noise.native())
        assert np.array_equal(scores, expected[0]) and np.array_equal(after, expected[1]), isa
        for name, z in native.votes(params, noise.native(), fitness, isa=isa).items():
            assert np.array_equal(z, votes[name]), (isa, name)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("use_clt", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"n_embd": 9, "rank": 3}, {"vocab_size": 7, "num_perturbations": 6}, {"rank": 300}]
)
def test_votes_equal_the_scalar_twin(changes: dict[str, Any], use_clt: bool, normalised: bool) -> None:
    """More pairs than one product sums, of sign fitness and of every int8 fitness."""
    config = Config(**{"n_layer": 2, "n_embd": 4, "vocab_size": 3, "population": 2, **changes})
    pairs = 9 if config.rank == 300 else 300
    rng = np.random.default_rng(1)
    fitness = (rng.integers(-128, 128, pairs) if normalised else rng.integers(-1, 2, pairs)).astype(np.int8)
    params, values = random_params(rng, config), epoch_noise(config, 5)
    noise = values.native()
    how: dict[str, Any] = {"use_clt": use_clt, "normalised": normalised}
    expected = kernels.naive_votes(params, values, fitness, **how)
    asked = config.replace(population=2 * pairs, use_clt=use_clt, fast_fitness=not normalised)
    for name, z in oracle.votes(asked, fitness, 5).items():
        assert np.array_equal(expected[name], z), name
    bound = 16 * 900
    for isa in ISAS:
        for threads in (1, 2, 5):
            votes = native.votes(params, noise, fitness, isa=isa, threads=threads, **how)
            updated = native.update(params, noise, fitness, bound, isa=isa, threads=threads, **how)
            for name, z in expected.items():
                assert np.array_equal(votes[name], z), (isa, name)
                assert np.array_equal(updated[name], oracle.move(params[name], z, bound)), (isa, name)


@pytest.mark.parametrize("lanes", [1, 20, 300])
@pytest.mark.parametrize("use_clt", [True, False])
@pytest.mark.parametrize("changes", [{}, {"vocab_size": 130, "num_perturbations": 6, "rank": 3}])
def test_sparse_votes_equal_the_scalar_twin(changes: dict[str, Any], use_clt: bool, lanes: int) -> None:
    """Embeddings get the votes of the lanes that have read their bytes; every row has a bound of its own."""
    config = Config(**{"n_layer": 1, "n_embd": 4, "vocab_size": 3, "population": 2, **changes})
    rng = np.random.default_rng(lanes)
    fitness = rng.integers(-128, 128, 300).astype(np.int8)
    params, values = random_params(rng, config), epoch_noise(config, 5)
    reads = rng.integers(0, 4, (lanes, config.vocab_size)) == 0
    bounds = rng.integers(0, 10**5, config.vocab_size)
    expected = kernels.naive_votes(params, values, fitness, use_clt, normalised=True, reads=reads)
    texts = [set(np.flatnonzero(reads[pair * lanes // 300]).tolist()) for pair in range(300)]
    asked = config.replace(population=600, use_clt=use_clt, fast_fitness=False)
    for name, z in oracle.votes(asked, fitness, 5, texts).items():
        assert np.array_equal(expected[name], z), name
    how: dict[str, Any] = {"use_clt": use_clt, "normalised": True, "reads": reads}
    moved = {name: oracle.move(params[name], z, 16 * 900) for name, z in expected.items()}
    for row, bound in enumerate(bounds.tolist()):
        moved["emb"][row] = oracle.move(params["emb"][row], expected["emb"][row], bound)
    for isa in ISAS:
        for threads in (1, 3):
            votes = native.votes(params, values.native(), fitness, isa=isa, threads=threads, **how)
            updated = native.update(
                params, values.native(), fitness, 16 * 900, embedding_bounds=bounds, isa=isa, threads=threads, **how
            )
            for name, z in expected.items():
                assert np.array_equal(votes[name], z) and np.array_equal(updated[name], moved[name]), (isa, name)


# The scalar twin also draws the noise of all pairs before the one that votes.
@pytest.mark.parametrize(
    ("pair", "isa"), [(pair, isa) for isa in TWINS for pair in (0, 3, 70_000) if isa != "naive" or pair < 10]
)
def test_where_noise_begins(pair: int, isa: str) -> None:
    """At the hash of the base and both halves of the pair's number; but early enough to end before 2^30."""
    config = Config(n_layer=1, n_embd=5, vocab_size=4, rank=2)
    params = random_params(np.random.default_rng(4), config)
    hashed = ((pair >> 16) ^ pair) * 0x45D9F3B % 2**32
    fitness = np.zeros(pair + 1, np.int8)
    fitness[pair] = 1
    for wanted in (0, 12345, 2**30 - 70, 2**30 - 1):
        base = np.array([(wanted ^ hashed) | 2**31], np.uint32)
        noise = NoiseValues((3, 4), [base] * 13, rank=2)
        if isa == "naive":
            votes = kernels.naive_votes(params, noise, fitness, use_clt=True, normalised=False)
        else:
            votes = native.votes(params, noise.native(), fitness, isa=isa)
        for name, kind, shape in oracle.leaves(config):
            length = 2 * sum(shape)
            start = min(wanted, 2**30 - length)
            draws = oracle.normals((3, 4), np.arange(start, start + length), "trunc").reshape(-1, 2)
            Z = draws[shape[1] :] @ draws[: shape[1]].T if kind == "matrix" else draws[:, 0] * draws[:, 1]
            assert np.array_equal(votes[name].reshape(shape), Z), (name, wanted)


def test_a_pair_that_did_not_differ_does_not_vote() -> None:
    config = Config(n_layer=1, n_embd=5, vocab_size=4)
    params, noise = random_params(np.random.default_rng(2), config), epoch_noise(config, 0).native()
    for isa in ISAS:
        for pairs in (0, 1, 3):
            votes = native.votes(params, noise, np.zeros(pairs, np.int8), isa=isa)
            assert all((z == 0).all() for z in votes.values())


def test_threads_blocks_and_instruction_sets_do_not_matter() -> None:
    config = Config(n_layer=2, n_embd=48, population=50, num_perturbations=10)
    params = {name: np.array(value) for name, value in init_params(config).items()}
    noise = epoch_noise(config, 1).native()
    inputs = pseudo_text(50 * 6, 1).reshape(50, 6)
    states = numbers(np.random.default_rng(3), 50, 2, 48)
    whole = native.score(native.Weights(params), inputs, inputs, states, noise=noise, exact=True)
    for isa in ISAS:
        weights = native.Weights(params, isa=isa)
        for threads in (0, 1, 2, 3, 64):
            for block in (0, 1, 2, 3, 7, 50, 1000):
                how: dict[str, Any] = {"threads": threads, "block": block, "exact": True}
                scored = native.score(weights, inputs, inputs, states, noise=noise, **how)
                # Code lengths are floats, and still equal to the last bit.
                assert all(np.array_equal(is_, was) for is_, was in zip(scored, whole, strict=True))
        # In two parts, of which the second begins in the middle of a pair.
        for cut in (1, 13, 49):
            first = native.score(weights, inputs[:cut], inputs[:cut], states[:cut], noise=noise)
            second = native.score(weights, inputs[cut:], inputs[cut:], states[cut:], noise=noise, first_member=cut)
            assert np.array_equal(np.concatenate([first[0], second[0]]), whole[0])
            assert np.array_equal(np.concatenate([first[1], second[1]]), whole[1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fast_fitness": False, "rank": 2, "num_perturbations": 12, "group_size": 6, "noise_reuse": 3},
        {"fast_fitness": False, "sparse_embedding": True, "group_size": 4},
    ],
    ids=["plain", "normalised, rank 2, repeated noise", "normalised, sparse"],
)
def test_twenty_epochs_on_both_engines(changes: dict[str, Any]) -> None:
    config = Config(
        **{
            "n_layer": 2,
            "n_embd": 20,
            "population": 24,
            "tokens_per_update": 8,
            "alpha": 6.0,
            "alpha_decay_timestep": 10,
            "validation_batch_size": 5,
            **changes,
        }
    )
    tokens, valid = text(config, 2000, 1), text(config, 90, 2)
    runs = [Trainer(config.replace(engine=engine), tokens) for engine in ("mlx", "cpu")]
    first = {name: np.array(value) for name, value in runs[0].params.items()}
    for _ in range(20):
        left, right = (run.step() for run in runs)
        assert np.array_equal(left.scores, right.scores) and np.array_equal(left.fitness, right.fitness)
        assert (left.threshold, left.moved) == (right.threshold, right.moved)
        assert np.array_equal(np.array(runs[0].states), np.array(runs[1].states))
        for name, value in runs[0].params.items():
            assert np.array_equal(np.array(value), np.array(runs[1].params[name])), name
        scores = [validate(run.params, valid, run.config) for run in runs]
        assert np.array_equal(scores[0][0], scores[1][0]) and scores[0][1] == scores[1][1]
    assert any((np.array(runs[0].params[name]) != value).any() for name, value in first.items())


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses(isa: str) -> None:
    code = "from nanoegg_mlx.engines import _native; print(_native.info()['isa'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NANOEGG_ISA": isa}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == isa


@pytest.mark.parametrize("command", [["info"], ["train", "--engine=cpu"], ["bench", "--engine=cpu"]])
def test_an_unknown_instruction_set_is_one_sentence(command: list[str], tmp_path: Any) -> None:
    """Also where the engine is chosen automatically: a setting of the user is never ignored."""
    for cache in ("train", "valid"):
        np.save(tmp_path / f"{cache}.npy", pseudo_text(300_000, 1))
    if command[0] == "train":
        command = [*command, f"--train={tmp_path}/train.npy", f"--valid={tmp_path}/valid.npy"]
    done = subprocess.run(
        [sys.executable, "-m", "nanoegg_mlx.cli", *command],
        env={**os.environ, "NANOEGG_ISA": "mmx"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    have = ", ".join(ISAS)
    sentence = f'error: NANOEGG_ISA is "mmx"; it must be one of: {have}.\n'
    assert (done.returncode, done.stderr) == (2, sentence)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.npy", "valid.npy"]


def test_an_instruction_set_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOEGG_ISA", "mmx")
    with pytest.raises(InputError, match="mmx"):
        make_engine(Config(engine="cpu"))
    assert make_engine(Config(engine="mlx")).name == "mlx"
    with pytest.raises(ValueError, match="sse9"):
        native.Weights({name: np.array(value) for name, value in init_params(Config(n_embd=4)).items()}, isa="sse9")
