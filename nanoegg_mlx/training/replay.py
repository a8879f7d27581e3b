"""Any epoch's parameters from the votes alone: no data, no forward pass, at the speed of the update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, init_params
from nanoegg_mlx.engines import Engine, make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store.fitness_log import read_votes


def replay(votes: Path, engine: str = "auto", threads: int = 0) -> Iterator[tuple[int, Config, Params]]:
    """Goes through a votes file epoch by epoch.

    Args:
        votes: a run's votes.bin.
        engine, threads: who computes the updates, as in Config.

    Yields:
        The epochs done (1, 2, ...), the config of the last of them, and the parameters after it.

    Raises:
        InputError: the file cannot be used, or does not begin with the first epoch.
    """
    config: Config | None = None
    params: Params = {}
    hot: Engine | None = None
    for vote in read_votes(votes):
        if config is None:
            if vote.epoch != 0:
                raise InputError(f"{votes} begins with epoch {vote.epoch}; a replay needs all from epoch 0.")
            params = init_params(vote.config)
        if hot is None or vote.config != config:
            config = vote.config
            hot = make_engine(config.replace(engine=engine, threads=threads))
        params = hot.update(params, vote.fitness, vote.epoch)
        yield vote.epoch + 1, config, params


def params_at(votes: Path, epochs: int, engine: str = "auto", threads: int = 0) -> tuple[Config, Params]:
    """The config and the parameters after `epochs` epochs (1, 2, ...).

    Raises InputError as `replay` does, and where the file does not hold so many epochs.
    """
    done = 0
    for done, config, params in replay(votes, engine, threads):
        if done == epochs:
            return config, params
    raise InputError(f"{votes} holds {done} whole epochs; epoch = {epochs} has to be from 1 to {done}.")
