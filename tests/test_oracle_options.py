"""The options of perturbed weights (docs/perturbed-weights.md) against the naive twin, on each engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, Trainer
from tests.oracle import Oracle
from tests.test_oracle import SPARSE_CASES, TINY, assert_same_run, text
from tests.traces import ENGINES


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("changes", SPARSE_CASES.values(), ids=SPARSE_CASES.keys())
def test_sparse_run_equals_the_oracle(changes: dict[str, Any], engine: str) -> None:
    """On each engine, in chunks that begin within a lane; rows that nobody has read do not move."""
    config = Config(**{**TINY, **changes, "engine": engine, "chunk": 6})
    tokens = text(config, config.lanes * (2 * config.tokens_per_update + 1) + config.lanes // 2, 3)
    trainer = Trainer(config, tokens)
    before = np.array(trainer.params["emb"])
    oracle = Oracle(config, tokens)
    assert_same_run(trainer, oracle, 1)
    read = np.unique(trainer.lanes.batch(0)[0])
    moved = np.array(trainer.params["emb"]) != before
    assert not np.delete(moved, read, axis=0).any()
    assert config.alpha < 1 or (moved[read] | (np.abs(before[read].astype(int)) == 127)).all()
    assert_same_run(trainer, oracle, 2)
