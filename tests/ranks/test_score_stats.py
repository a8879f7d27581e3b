"""Statistics of scores are exact, and the same for any partition."""

from __future__ import annotations

import numpy as np
import pytest

from nanoegg_mlx import Config, Trainer
from nanoegg_mlx.core.update import sum_of_squares
from nanoegg_mlx.ranks.score_stats import ScoreStats
from tests.traces import ENGINES, pseudo_text

CONFIG = Config(n_layer=1, n_embd=8, population=28, group_size=4, tokens_per_update=6, engine=ENGINES[-1])


def test_the_statistics_are_the_same_for_any_parts() -> None:
    scores = np.random.default_rng(1).integers(-(2**31), 2**31, 1001).astype(np.int32)
    whole = ScoreStats.of(scores)
    parts = [ScoreStats.unpack(ScoreStats.of(part).pack()) for part in np.array_split(scores, 4)]
    assert ScoreStats.sum([*parts[::-1], ScoreStats.of(scores[:0])]) == whole
    exact = scores.astype(object)
    assert (whole.count, whole.total, whole.squares) == (1001, exact.sum(), (exact**2).sum())
    assert (whole.least, whole.most) == (scores.min(), scores.max())
    assert whole.mean == exact.sum() / 1001 and whole.std == pytest.approx(scores.astype(float).std(), rel=1e-12)
    assert ScoreStats.of(np.full(5, -3)).std == 0
    assert sum_of_squares(np.full(9, -(2**31))) == 9 * 2**62
    result = Trainer(CONFIG, pseudo_text(3000, 1)).step()
    assert result.score_stats == ScoreStats.of(result.scores)
    assert (result.loss_min, result.loss_max) == (result.losses.min(), result.losses.max())
    assert result.loss_mean == pytest.approx(result.losses.mean(), rel=1e-14)
