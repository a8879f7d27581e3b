"""Writes runs as a binary file for check.cpp, which has no Python: recorded traces, and runs of the plain Python twin.

    python -m tests.engines.write_cases FILE

A recorded trace keeps only digests of parameters and states, so this script computes them again on the MLX engine and
checks them against the digests. Little-endian, all numbers int64 unless stated otherwise, arrays in C order:

    "eggcases", number of cases, then each case:
    length and bytes of its name; V D L; two words of key(seed); rank, sigma_shift, num_perturbations, group size,
    use_clt, normalised fitness, sparse_embedding; N T epochs; 13 leaves int8
    each epoch: bases of the 13 leaves uint32 (one a layer); bound; with sparse_embedding the bounds of its rows (V,);
        inputs and targets (N/G, T) uint8; scores (N,); fitness (N/2,) int8; states (N, L, D) int8; 13 leaves int8
    rows B and tokens m of a validation (0 0: none); inputs and targets (B, m) uint8; scores (B,)

Then the number of calls of `nudge`, whose expected results are the MLX engine's, and each:

    length and bytes of its name; V D L; two words of the epoch's key; nudge, head_nudge (0: head_rule "error"),
    credit_decay; first member, size G of a cohort, antithetic; cohorts P, tokens T; 13 leaves int8;
    inputs and targets (P, T) uint8; states before (G P, L, D) int8; scores (G P,); states after;
    Z and S of core.activations.Moments in their order

Then the number of compressed texts, coded by the MLX engine, and each:

    D L; 13 leaves int8; number of lanes; length and bytes of each lane, and of each lane's stream
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from nanoegg_mlx import Config, Trainer, init_params, validate
from nanoegg_mlx.core.coins import coin_key
from nanoegg_mlx.engines import make_engine
from tests import oracle
from tests.oracle import Oracle
from tests.test_oracle import CASES, TINY, text
from tests.traces import NAMES, Trace, pseudo_text, sha256

NUDGED: list[dict[str, Any]] = [
    {"n_layer": 1, "n_embd": 1, "vocab_size": 5, "population": 4, "tokens_per_update": 3},
    {"n_layer": 2, "n_embd": 33, "vocab_size": 130, "population": 16, "tokens_per_update": 20},
    {"n_layer": 3, "n_embd": 65, "population": 10, "tokens_per_update": 7, "head_rule": "perturb", "nudge": 64},
    {"n_layer": 1, "n_embd": 64, "population": 40, "tokens_per_update": 12, "credit_decay": 15},
    {"n_layer": 1, "n_embd": 130, "population": 6, "tokens_per_update": 9, "head_rule": "perturb", "head_nudge": 9},
    {"n_layer": 2, "n_embd": 9, "population": 12, "tokens_per_update": 7, "antithetic": False, "group_size": 4},
    {
        "n_layer": 1, "n_embd": 65, "vocab_size": 70, "population": 30, "tokens_per_update": 5, "antithetic": False,
        "group_size": 10, "head_rule": "perturb", "nudge": 64,
    },
    {
        "n_layer": 1, "n_embd": 5, "vocab_size": 9, "population": 256, "tokens_per_update": 3, "antithetic": False,
        "group_size": 128,
    },
]  # fmt: skip
"""Configurations of nudged calls."""
EPOCHS = 3
"""Of a recorded trace, at most. Large models get one epoch and no validation, because an emulator is slow."""


def main(path: Path) -> None:
    """Writes the recorded traces, the oracle's cases, and nudged calls."""
    with path.open("wb") as file:
        file.write(b"eggcases")
        numbers(file, len(NAMES) + len(CASES))
        for name in NAMES:
            write_trace(file, name)
        for name, changes in CASES.items():
            write_oracle(file, name, Config(**{**TINY, **changes}))
        numbers(file, len(NUDGED))
        for number, changes in enumerate(NUDGED):
            write_nudged(file, f"nudge {number}", Config(**changes, perturb="activations", engine="mlx"), number)
        numbers(file, 2)
        write_coded(file, Config(n_layer=2, n_embd=40, engine="mlx"), initial=True)
        write_coded(file, Config(n_layer=1, n_embd=64, engine="mlx"), initial=False)


def write_trace(file: BinaryIO, name: str) -> None:
    """The first epochs of a recorded trace, and a validation of the parameters after them."""
    trace = Trace(name)
    config = trace.config.replace(engine="mlx")
    trainer = Trainer(config, trace.train_tokens)
    large = config.n_layer * config.n_embd > 128
    epochs = 1 if large else min(EPOCHS, trace.epochs)
    write_head(file, name, config, epochs, trainer.params)
    for epoch in range(epochs):
        result = trainer.step()
        assert np.array_equal(result.scores, trace.arrays["scores"][epoch])
        assert np.array_equal(result.fitness, trace.arrays["fitness"][epoch])
        assert sha256(*trainer.params.values()) == trace.meta["params_sha256"][epoch]
        assert sha256(trainer.states) == trace.meta["states_sha256"][epoch]
        write_epoch(
            file, config, epoch, trace.train_tokens, result.scores, result.fitness, trainer.states, trainer.params
        )
    if large:
        numbers(file, 0, 0)
        return
    tokens = trace.valid_tokens[: 64 * config.validation_batch_size]
    write_validation(file, config, tokens, validate(trainer.params, tokens, config)[0])


def write_oracle(file: BinaryIO, name: str, config: Config) -> None:
    """Two epochs and a validation of the plain Python twin."""
    tokens = text(config, config.lanes * (2 * config.tokens_per_update + 1), 3)
    run = Oracle(config, tokens)
    write_head(file, name, config, 2, run.params)
    for epoch in range(2):
        scores = run.step()
        write_epoch(file, config, epoch, tokens, scores, run.fitness, run.states, run.params)
    valid = text(config, 32, 4)
    write_validation(file, config, valid, oracle.validate(config, run.params, valid)[0])


def write_nudged(file: BinaryIO, name: str, config: Config, seed: int) -> None:
    """A call of `nudge` with random parameters, text with zero bytes, and states, for all cohorts but the first."""
    rng = np.random.default_rng(seed)
    params = {
        leaf: mx.array(rng.integers(-127, 128, value.shape), dtype=mx.int8)
        for leaf, value in init_params(config).items()
    }
    members = range(config.cohort, config.population)
    cohorts = len(members) // config.cohort
    text = rng.integers(0, config.vocab_size, (2, cohorts, config.tokens_per_update)).astype(np.uint8)
    text[0][rng.random(text[0].shape) < 0.1] = 0
    states = rng.integers(-127, 128, (len(members), config.n_layer, config.n_embd)).astype(np.int8)
    epoch = 3
    nudged = make_engine(config).nudge(params, members, epoch, text[0], text[1], states)
    numbers(file, len(name.encode()))
    file.write(name.encode())
    numbers(file, config.vocab_size, config.n_embd, config.n_layer, *np.array(coin_key(config, epoch)).tolist())
    numbers(file, config.nudge, config.head_nudge if config.head_rule == "perturb" else 0, config.credit_decay)
    numbers(file, members.start, config.cohort, config.antithetic, cohorts, config.tokens_per_update)
    arrays(file, np.int8, *params.values())
    arrays(file, np.uint8, *text)
    arrays(file, np.int8, states)
    arrays(file, np.int64, nudged.scores)
    arrays(file, np.int8, nudged.states)
    for sums in nudged.sums:
        arrays(file, np.int64, *sums.values())


def write_coded(file: BinaryIO, config: Config, initial: bool) -> None:
    """Lanes of text, those of models that hardly predict it among them."""
    rng = np.random.default_rng(config.n_embd)
    params = init_params(config)
    if not initial:
        params = {leaf: mx.array(rng.integers(-127, 128, p.shape), dtype=mx.int8) for leaf, p in params.items()}
    whole = bytes(pseudo_text(300, 1)) + bytes(rng.integers(0, 256, 95, np.uint8))
    lanes = [whole[len(whole) * lane // 7 : len(whole) * (lane + 1) // 7] for lane in range(7)]
    numbers(file, config.n_embd, config.n_layer)
    arrays(file, np.int8, *params.values())
    numbers(file, len(lanes))
    for part in [*lanes, *make_engine(config).encode(params, lanes)]:
        numbers(file, len(part))
        file.write(part)


def write_head(file: BinaryIO, name: str, config: Config, epochs: int, params: Any) -> None:
    numbers(file, len(name.encode()))
    file.write(name.encode())
    numbers(file, config.vocab_size, config.n_embd, config.n_layer, *oracle.make_key(config.seed))
    numbers(file, config.rank, config.sigma_shift, config.num_perturbations, config.group)
    numbers(file, config.use_clt, not config.fast_fitness, config.sparse_embedding)
    numbers(file, config.population, config.tokens_per_update, epochs)
    arrays(file, np.int8, *params.values())


def write_epoch(
    file: BinaryIO, config: Config, epoch: int, tokens: np.ndarray, scores: Any, fitness: Any, states: Any, params: Any
) -> None:
    true_epoch = epoch // config.noise_reuse if config.noise_reuse else 0
    bases = [[oracle.fold_in(key, true_epoch)[0] for key in keys] for keys in oracle.leaf_keys(config).values()]
    arrays(file, np.uint32, *bases)
    numbers(file, oracle.bound(config, epoch, config.pairs))
    members = range(0, config.population, config.group)
    lanes = np.array([oracle.member_text(config, tokens, member, epoch) for member in members])
    if config.sparse_embedding:
        readers = [sum(v in lane for lane in lanes[:, :-1]) * config.group // 2 for v in range(config.vocab_size)]
        # No entry of a row that nobody has read has a vote; with a bound of 1 it stays.
        numbers(file, *(oracle.bound(config, epoch, n) if n else 1 for n in readers))
    arrays(file, np.uint8, lanes[:, :-1], lanes[:, 1:])
    arrays(file, np.int64, scores)
    arrays(file, np.int8, fitness, states, *params.values())


def write_validation(file: BinaryIO, config: Config, tokens: np.ndarray, scores: np.ndarray) -> None:
    B = config.validation_batch_size
    rows = tokens[: len(tokens) // B * B].reshape(B, -1)
    numbers(file, B, rows.shape[1] - 1)
    arrays(file, np.uint8, rows[:, :-1], rows[:, 1:])
    arrays(file, np.int64, scores)


def numbers(file: BinaryIO, *values: int) -> None:
    file.write(struct.pack(f"<{len(values)}q", *values))


def arrays(file: BinaryIO, dtype: type, *values: Any) -> None:
    for value in values:
        file.write(np.ascontiguousarray(np.array(value), dtype).tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
