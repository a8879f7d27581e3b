"""Any epoch's parameters from the fitness log alone: no data, no forward pass, at the speed of the update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, init_params
from nanoegg_mlx.engines import Engine, make_engine
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store.fitness_log import read_fitness_log


def replay(fitness_log: Path, engine: str = "auto", threads: int = 0) -> Iterator[tuple[int, Config, Params]]:
    """Repeats the updates of a fitness log, epoch by epoch.

    Args:
        fitness_log: a run's votes.bin.
        engine, threads: for the updates, as in Config.

    Yields:
        The epochs done (1, 2, ...), the config of the last of them, and the parameters after it.

    Raises:
        InputError: the file cannot be used, or does not begin with the first epoch.
    """
    config: Config | None = None
    params: Params = {}
    updater: Engine | None = None
    for logged in read_fitness_log(fitness_log):
        if config is None:
            if logged.epoch != 0:
                raise InputError(f"The first epoch of {fitness_log} is {logged.epoch}; it must be 0 for a replay.")
            params = init_params(logged.config)
        if updater is None or logged.config != config:
            config = logged.config
            if config.perturb != "weights":
                raise InputError(
                    f"Epoch {logged.epoch} of {fitness_log} has perturb = {config.perturb!r}; it must be 'weights' for "
                    "a replay, since a run of nudged activations is rebuilt from its checkpoints, not from votes."
                )
            if config.sparse_embedding:
                raise InputError(
                    f"Epoch {logged.epoch} of {fitness_log} has sparse_embedding = true; it must be false for a "
                    "replay, since the log has no text: the run is rebuilt from its checkpoints, not from votes."
                )
            updater = make_engine(config.replace(engine=engine, threads=threads))
        params = updater.update(params, logged.fitness, logged.epoch)
        yield logged.epoch + 1, config, params


def params_at(fitness_log: Path, epochs: int, engine: str = "auto", threads: int = 0) -> tuple[Config, Params]:
    """The config and the parameters after `epochs` epochs (1, 2, ...).

    Raises InputError as `replay` does, and if the log has fewer epochs.
    """
    done = 0
    for done, config, params in replay(fitness_log, engine, threads):
        if done == epochs:
            return config, params
    raise InputError(f"epoch is {epochs}; it must be from 1 to {done}, the last whole one in {fitness_log}.")
