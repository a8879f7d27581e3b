"""The votes of parts of the population add up to the update of the whole population."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, init_params
from nanoegg_mlx.core import update
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.ranks.exchange import UpdateChoice
from nanoegg_mlx.ranks.partition import members_of
from tests.ranks.parts import Part
from tests.traces import ENGINES

CONFIG = Config(n_layer=1, n_embd=8, population=28, group_size=4, tokens_per_update=6, engine=ENGINES[-1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("fast", [True, False])
def test_votes_by_shares_sum_to_the_update(engine: str, fast: bool, sparse: bool) -> None:
    config = CONFIG.replace(
        engine=engine, fast_fitness=fast, num_perturbations=8, n_layer=2, chunk=6, sparse_embedding=sparse
    )
    reads = np.random.default_rng(1).integers(0, 3, (config.lanes, 256)) == 0 if sparse else None
    params, hot = init_params(config), make_engine(config)
    fitness = np.random.default_rng(0).integers(*((-1, 2) if fast else (-127, 128)), 14).astype(np.int8)
    for size in (1, 3, 7):
        Z = {name: mx.zeros(value.shape, update.vote_dtype(config)) for name, value in params.items()}
        for rank in range(size):
            members = members_of(config, Part(rank, size))
            some = hot.votes(params, fitness, range(members.start // 2, members.stop // 2), 5, reads)
            assert all(some[name].dtype == update.vote_dtype(config) for name in params)
            Z = {name: Z[name] + some[name] for name in params}
        moved, expected = update.step(params, Z, config, 5, reads), hot.update(params, fitness, 5, reads)
        assert all(np.array_equal(np.array(moved[name]), np.array(expected[name])) for name in params)
    nothing = hot.votes(params, fitness, range(4, 4), 5, reads)
    assert not any(np.array(value).any() for value in nothing.values())


def test_the_choice_of_update() -> None:
    def choices(wanted: str, ranks: int, seconds: list[float]) -> list[bool]:
        choice, chosen = UpdateChoice(wanted, ranks), []
        for before in seconds:
            choice.record(before)
            chosen.append(choice.sharded)
        return chosen

    trials = [False, True, False, True]
    assert choices("auto", 2, [0, 9, 1, 3, 2, 0, 0]) == [*trials, True, True, True]
    assert choices("auto", 2, [0, 9, 1, 2, 3, 0, 0]) == [*trials, False, False, False]
    assert choices("auto", 1, [0] * 6) == [False] * 6
    assert choices("sharded", 2, [0] * 3) == [True] * 3
    assert choices("replicated", 2, [0] * 3) == [False] * 3
