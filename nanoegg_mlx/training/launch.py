"""Opens a run from any start: a seed, its newest checkpoint, or an epoch of another run.

Every start has the same steps, on all ranks of a job: agree on the options; find the start (rank 0); open the caches;
check them; give every rank its part of the start; open the run's folder (rank 0); train. An `Origin` supplies the
steps of rank 0 that differ. Nothing is written before all checks have passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nanoegg_mlx.config import Config, fields_marked, from_dict
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.ranks.partition import broadcast_params, scatter_states
from nanoegg_mlx.ranks.world import World
from nanoegg_mlx.store import checkpoint, metrics
from nanoegg_mlx.store.durable import AppendOnly, Lock, sync_folder, write_file
from nanoegg_mlx.store.fitness_log import config_frame, size_before, start_fitness_log
from nanoegg_mlx.training.caches import Caches
from nanoegg_mlx.training.recorder import NullRecorder, Observe, Outcome, Recorder, unobserved
from nanoegg_mlx.training.replay import params_at
from nanoegg_mlx.training.run import Run
from nanoegg_mlx.training.trainer import Trainer


@dataclass(frozen=True)
class Start:
    """The state that a run begins with."""

    config: Config
    epoch: int = 0
    """Epochs done."""
    params: Params | None = None
    """None: the initial ones of the seed."""
    sums: Params | None = None
    """Of averaged parameters; None: those that begin with `params`."""
    states: Callable[[], np.ndarray] | None = None
    """Reads them, (N, L, D) int8; None: zeros."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """checkpoint.json, if the start is a checkpoint."""
    same_data_as: Path | None = None
    """The run that had the caches in `info`; the present ones must be the same. None: no check."""


class Origin(Protocol):
    """One way to begin a run. The methods are called on rank 0 only, in this order."""

    @property
    def changes(self) -> Mapping[str, Any]:
        """Config fields given by the user: the same on all ranks, except for the fields marked `per_rank`."""

    def find(self, held: ExitStack) -> Start:
        """Finds the start; `held` keeps locks until the end of the run. Raises InputError if there is none."""

    def open(self, config: Config, epoch: int, held: ExitStack) -> tuple[Path, AppendOnly]:
        """Opens the run's folder and the fitness log, positioned at `epoch`."""


def launch(origin: Origin, world: World | None = None, observe: Observe = unobserved) -> Outcome | None:
    """Trains a run from its origin up to `num_epochs`, or until a signal.

    Args:
        origin: NewRun, ResumedRun or BranchedRun.
        world: the job's processes, all of which call this; by default this process alone.
        observe: makes the run's observers, on rank 0.

    Returns:
        The outcome on rank 0, None on the others. The last whole epoch is in a checkpoint.

    Raises:
        InputError: the options, the start, the config or the caches do not fit; nothing has been written then.
        OSError: the disk is full or fails; the newest whole checkpoint is valid, and the run can be resumed.
        JobError: a rank is lost or has other results; the newest checkpoint is valid, and the run can be resumed.
    """
    world = World() if world is None else world
    with ExitStack() as held:
        world.check_same(_common(origin.changes), "its configuration")
        start = world.run_on_root(lambda: origin.find(held), "rank 0 to find the start of the run")
        config = _config_of_rank(start, origin.changes, world)
        world.timeout = config.timeout
        caches = world.run_on_all(lambda: Caches(config), "all ranks to open their caches")
        caches.check_same(world)
        world.run_on_root(lambda: _check_data(start, caches), "rank 0 to compare the caches")
        trainer = _trainer(start, config, caches, world)

        def record() -> Recorder:
            assert start is not None
            folder, fitness_log = origin.open(config, trainer.epoch, held)
            return Recorder(folder, trainer, caches, fitness_log, start.info, observe)

        recorder = world.run_on_root(record, "rank 0 to open the run's folder") or NullRecorder()
        return Run(trainer, caches, recorder).go()


@dataclass(frozen=True)
class NewRun:
    """A new run from a seed, in a new folder under `config.checkpoints`."""

    config: Config

    @property
    def changes(self) -> Mapping[str, Any]:
        return asdict(self.config)

    def find(self, held: ExitStack) -> Start:
        return Start(self.config)

    def open(self, config: Config, epoch: int, held: ExitStack) -> tuple[Path, AppendOnly]:
        folder = new_folder(config)
        held.callback(Lock(folder).release)
        write_file(folder / "config.toml", config.to_toml().encode())
        return folder, start_fitness_log(folder / "votes.bin", config)


@dataclass(frozen=True)
class ResumedRun:
    """A run that continues, bit for bit, from its newest whole checkpoint, with any number of ranks."""

    folder: Path
    """The run's, or its newest checkpoint's; only rank 0 reads it."""
    changes: Mapping[str, Any]
    """Config fields with their new values; those without the mark `may_change` must keep their values."""

    def find(self, held: ExitStack) -> Start:
        run = checkpoint.run_of(self.folder)
        if not run.is_dir() or not ((run / "config.toml").exists() or checkpoint.folders(run)):
            raise InputError(f"The folder {run} is not a run's; to be resumed it must have a config.toml.")
        held.callback(Lock(run).release)
        file = run / "config.toml"
        if not checkpoint.folders(run):
            return Start(_changed(Config.from_toml(file), self.changes, run))
        opened = checkpoint.load(run)
        given = opened if run == self.folder else checkpoint.load(self.folder)
        if given.epoch != opened.epoch:
            raise InputError(
                f"{self.folder} is not the newest checkpoint of the run {run}; a run can be resumed from epoch "
                f"{opened.epoch} only. `--branch {run}@{given.epoch}` begins a new run from it."
            )
        # The sealed config of the checkpoint decides; an edited file counts like options.
        edited = asdict(Config.from_toml(file)) if file.exists() else {}
        config = _changed(opened.config, {**edited, **self.changes}, run)
        return Start(config, opened.epoch, *opened.moving(), opened.states, opened.info, same_data_as=run)

    def open(self, config: Config, epoch: int, held: ExitStack) -> tuple[Path, AppendOnly]:
        run = checkpoint.run_of(self.folder)
        fitness_log = _resumed_fitness_log(run / "votes.bin", config, epoch)
        checkpoint.remove_leftovers(run)
        _set_aside(run, epoch)
        write_file(run / "config.toml", config.to_toml().encode())
        return run, fitness_log


@dataclass(frozen=True)
class BranchedRun:
    """A new run with the parameters that another one had after some epochs.

    They come from the source's checkpoint of that epoch, with the members' states; without such a checkpoint from its
    fitness log, with zero states. The new run's votes.bin and metrics.jsonl begin with the source's. It may have
    another estimator (`perturb`): the parameters are of the same kind.
    """

    source: Path
    """The other run's folder; only rank 0 reads it."""
    epoch: int
    """Epochs done, at least 1."""
    changes: Mapping[str, Any]
    """Config fields with their new values; n_layer, n_embd and vocab_size must keep their values."""

    def find(self, held: ExitStack) -> Start:
        if checkpoint.is_checkpoint(self.source):
            raise InputError(
                f"{self.source} is a checkpoint; --branch must name its run and an epoch: "
                f"{checkpoint.run_of(self.source)}@{self.epoch}."
            )
        if not (self.source / "config.toml").exists():
            raise InputError(f"The folder {self.source} is not a run's; to branch from it, it must have a config.toml.")
        config = Config.from_toml(self.source / "config.toml")
        config = config.with_estimator(self.changes.get("perturb", config.perturb)).replace(**self.changes)
        folder = self.source / f"epoch-{self.epoch:08d}"
        if not folder.exists():
            _, params = params_at(self.source / "votes.bin", self.epoch, config.engine, config.threads)
            return Start(config, self.epoch, params)
        opened = checkpoint.open_whole(folder)
        same_states = all(
            getattr(opened.config, name) == getattr(config, name) for name in ("population", "n_layer", "n_embd")
        )
        params, sums = opened.moving()
        return Start(
            config,
            self.epoch,
            params,
            sums if config.average else None,
            opened.states if same_states else None,
            opened.info,
        )

    def open(self, config: Config, epoch: int, held: ExitStack) -> tuple[Path, AppendOnly]:
        """The folder has no config.toml yet: the recorder writes it after the first checkpoint."""
        whole = size_before(self.source / "votes.bin", epoch)
        if whole is None:
            raise InputError(
                f"{self.source / 'votes.bin'} has fewer than {epoch} epochs; it must have the epoch to branch from."
            )
        with (self.source / "votes.bin").open("rb") as file:
            past = file.read(whole)
        folder = new_folder(config)
        held.callback(Lock(folder).release)
        # A config frame, since the branch may have changed fields: they are valid from this epoch on.
        fitness_log = AppendOnly(folder / "votes.bin", 0)
        fitness_log.append(past + config_frame(config, epoch))
        lines = AppendOnly(folder / "metrics.jsonl", 0)
        if (self.source / "metrics.jsonl").exists():
            for line in metrics.iterate(self.source / "metrics.jsonl"):
                if line["epoch"] <= epoch:
                    lines.append(metrics.encode(line))
        lines.close()
        return folder, fitness_log


def new_folder(config: Config) -> Path:
    """Creates `<checkpoints>/<name>`, or `<name>-2` and so on if that exists: no run is overwritten."""
    parent = checkpoint.outside_checkpoints(Path(config.checkpoints))
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (config.name if number == 1 else f"{config.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        sync_folder(parent)
        return folder


def _common(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields that must be the same on all ranks of a job."""
    per_rank = fields_marked("per_rank")
    return {name: fields[name] for name in sorted(fields) if name not in per_rank}


def _config_of_rank(start: Start | None, changes: Mapping[str, Any], world: World) -> Config:
    """The config that rank 0 found, with this rank's own values of the fields marked `per_rank`."""
    config = from_dict(world.broadcast(asdict(start.config) if start else None, "the run's configuration"))
    per_rank = fields_marked("per_rank")
    return config.replace(**{name: changes[name] for name in changes if name in per_rank})


def _check_data(start: Start | None, caches: Caches) -> None:
    """Raises InputError if the start needs other caches."""
    if start and start.same_data_as:
        caches.check_recorded(start.info.get("data"), start.same_data_as)


def _trainer(start: Start | None, config: Config, caches: Caches, world: World) -> Trainer:
    """Each rank's trainer; `start` is None on the ranks other than 0."""
    has_params, has_sums, has_states, epoch = world.broadcast(
        start and (start.params is not None, start.sums is not None, start.states is not None, start.epoch),
        "the start of the run",
    )
    params, sums, states = None, None, None
    if has_params:
        params = broadcast_params(start.params if start else None, config, world)
    if has_sums:
        sums = broadcast_params(start.sums if start else None, config, world, np.int16)
    if has_states:
        states = scatter_states(start.states() if start and start.states else None, config, world)
    return world.run_on_all(
        lambda: Trainer(config, caches.train, params=params, sums=sums, states=states, epoch=epoch, world=world),
        "all ranks to be ready",
    )


def _changed(config: Config, changes: Mapping[str, Any], folder: Path) -> Config:
    """The config with the changes that a resumed run allows; InputError names the others."""
    changed = config.replace(**changes)
    before, after = asdict(config), asdict(changed)
    allowed = fields_marked("may_change")
    refused = [name for name in after if name not in allowed and before[name] != after[name]]
    if refused:
        given = ", ".join(f"{name} is {after[name]!r}; it must be {before[name]!r}" for name in refused)
        raise InputError(
            f"The run {folder} cannot be resumed with other settings: {given}. Only {', '.join(allowed)} may change; "
            "`--branch` starts another run with its parameters."
        )
    return changed


def _resumed_fitness_log(path: Path, config: Config, epoch: int) -> AppendOnly:
    """The fitness log of a resumed run, truncated to its epoch."""
    if epoch == 0 or not path.exists():
        return start_fitness_log(path, config, epoch)
    size = size_before(path, epoch)
    if size is None:
        raise InputError(
            f"{path} is damaged: it ends before epoch {epoch}, the newest checkpoint's. Move it away to continue with "
            "a new one; the epochs up to here can then not be replayed."
        )
    return AppendOnly(path, size)


def _set_aside(folder: Path, epoch: int) -> None:
    """Renames the checkpoints after `epoch`: they are damaged, and their epochs will be computed again."""
    for newer in checkpoint.folders(folder):
        if checkpoint.epoch_of(newer) > epoch:
            number = 1
            while (aside := folder / f"damaged-{newer.name}-{number}").exists():
                number += 1
            newer.rename(aside)
