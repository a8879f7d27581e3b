"""A training run: it begins, resumes or branches, and leaves everything in a folder of its own.

    <checkpoints>/<name>/config.toml      the config; `--resume` reads it
                         votes.bin        the fitness of every epoch: the whole run in kilobytes (votes.py)
                         metrics.jsonl    one line an epoch (metrics.py)
                         epoch-00000100/  checkpoints (checkpoint.py), with the links `latest` and `best`

In a job of several processes (distributed.py) rank 0 alone reads and writes all this; the others follow it.

The order of writing is what makes a run exact: an epoch's vote and line are appended before the checkpoint that
includes it is put in place, and after a crash both are cut back to the checkpoint that is resumed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nanoegg_mlx.config import HARMLESS, Config, from_dict
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.evaluate import Evaluation, evaluate
from nanoegg_mlx.ranks.partition import params_digest, spread_params, spread_states
from nanoegg_mlx.ranks.world import World
from nanoegg_mlx.store import checkpoint, metrics
from nanoegg_mlx.store.durable import AppendOnly, Lock, write_file
from nanoegg_mlx.store.fitness_log import config_frame, size_before, start_votes
from nanoegg_mlx.training.caches import SLOW_DISK, Corpus
from nanoegg_mlx.training.recorder import Books, new_folder
from nanoegg_mlx.training.replay import params_at
from nanoegg_mlx.training.signals import Stop
from nanoegg_mlx.training.trainer import Epoch, Trainer

T = TypeVar("T")

LOCAL = ("train", "valid", "checkpoints", "name", "keep", "engine", "threads", "chunk", "timeout")
"""Config fields that each rank of a job may have its own way; rank 0's are those that the run records."""


def train(config: Config, world: World | None = None, track: Sequence[str] = ()) -> int:
    """Trains a new run for `config.num_epochs` epochs into a new folder under `config.checkpoints`.

    Args:
        config: the run's.
        world: the job's processes, which all call this together; by default this one alone.
        track: names of tracking.TRACKERS.

    Returns:
        The command's exit code: 0 also after SIGTERM, 130 after Ctrl-C; the last whole epoch is in a checkpoint. Ranks
        other than 0 return 0.

    Raises:
        InputError: the config and the caches do not fit; nothing has been written then.
        OSError: the disk is full or fails; the newest whole checkpoint stays, and the run can be resumed.
        JobError: a rank is lost or has other bits; the newest checkpoint stays, and the run can be resumed.
    """
    world = World() if world is None else world
    world.agree(_of_all(asdict(config)), "its configuration")
    corpus, trainer = _prepared(config, world)
    with ExitStack() as stack:

        def begin() -> Books:
            folder = new_folder(config)
            stack.callback(Lock(folder).release)
            write_file(folder / "config.toml", config.to_toml().encode())
            return Books(folder, trainer, corpus, start_votes(folder / "votes.bin", config), {}, track)

        return _Run(trainer, corpus, world.on_root(begin, "rank 0 to begin the run")).go()


def resume(folder: Path, changes: Mapping[str, Any], world: World | None = None, track: Sequence[str] = ()) -> int:
    """Continues a run bit for bit from its newest whole checkpoint, with any number of processes.

    Args:
        folder: the run's; only rank 0 needs to see it.
        changes: config fields with their new values; those that decide the result have to be what they were.
        world: as for `train`.
        track: names of tracking.TRACKERS.

    Returns, raises:
        As `train`; also InputError where the run is in use, has nothing to resume, would change, or where the
        caches do not hold what it was trained on.
    """
    world = World() if world is None else world
    world.agree({"options": _of_all(changes)}, "its options")
    with ExitStack() as stack:

        def look() -> _Source:
            if not (folder / "config.toml").exists():
                raise InputError(f"There is no run to resume in {folder}; a run's folder has a config.toml.")
            stack.callback(Lock(folder).release)
            config = _changed(Config.from_toml(folder / "config.toml"), changes, folder)
            if not checkpoint.folders(folder):
                return _Source(config, 0, {})
            opened = checkpoint.load(folder)
            return _Source(config, opened.epoch, opened.info, opened.params, opened.states)

        source = world.on_root(look, "rank 0 to open the run")
        config = _config_of(source, changes, world)

        def check(corpus: Corpus) -> None:
            if source and source.params:
                corpus.check(source.info.get("data"), folder)

        corpus, trainer = _prepared(config, world, source, check)

        def begin() -> Books:
            votes = _votes_from(folder / "votes.bin", config, trainer.epoch)
            checkpoint.remove_leftovers(folder)
            _set_aside(folder, trainer.epoch)
            write_file(folder / "config.toml", config.to_toml().encode())
            return Books(folder, trainer, corpus, votes, source.info if source else {}, track)

        return _Run(trainer, corpus, world.on_root(begin, "rank 0 to resume the run")).go()


def branch(
    source: Path, epochs: int, changes: Mapping[str, Any], world: World | None = None, track: Sequence[str] = ()
) -> int:
    """Begins a new run with the parameters that another one had after `epochs` epochs.

    They come from the source's checkpoint of that epoch, and the members' states with them; where there is none, from
    its votes, and the states are zeros. The new run's votes.bin and metrics.jsonl begin with the source's.

    Args:
        source: the other run's folder; only rank 0 needs to see it.
        epochs: epochs done, at least 1.
        changes: config fields with their new values; n_layer, n_embd and vocab_size have to be what they were.
        world: as for `train`.
        track: names of tracking.TRACKERS.

    Returns, raises:
        As `train`; also InputError where the source has no such epoch or another model.
    """
    world = World() if world is None else world
    world.agree({"options": _of_all(changes)}, "its options")

    def look() -> _Source:
        if not (source / "config.toml").exists():
            raise InputError(f"There is no run to branch from in {source}; a run's folder has a config.toml.")
        config = Config.from_toml(source / "config.toml").replace(**changes)
        folder = source / f"epoch-{epochs:08d}"
        if not folder.exists():
            _, params = params_at(source / "votes.bin", epochs, config.engine, config.threads)
            return _Source(config, epochs, {}, params)
        opened = checkpoint.open_whole(folder)
        fits = all(
            getattr(opened.config, name) == getattr(config, name) for name in ("population", "n_layer", "n_embd")
        )
        return _Source(config, epochs, opened.info, opened.params, opened.states if fits else None)

    found = world.on_root(look, "rank 0 to find the epoch")
    config = _config_of(found, changes, world)
    corpus, trainer = _prepared(config, world, found)
    with ExitStack() as stack:

        def begin() -> Books:
            whole = size_before(source / "votes.bin", epochs)
            if whole is None:
                raise InputError(f"{source / 'votes.bin'} holds less than {epochs} epochs; branch from an earlier one.")
            with (source / "votes.bin").open("rb") as file:
                past = file.read(whole)
            folder = new_folder(config)
            stack.callback(Lock(folder).release)
            votes = AppendOnly(folder / "votes.bin", 0)
            votes.append(past + config_frame(config, epochs))
            lines = AppendOnly(folder / "metrics.jsonl", 0)
            if (source / "metrics.jsonl").exists():
                for line in metrics.iterate(source / "metrics.jsonl"):
                    if line["epoch"] <= epochs:
                        lines.append(metrics.encode(line))
            lines.close()
            return Books(folder, trainer, corpus, votes, found.info if found else {}, track)

        books = world.on_root(begin, "rank 0 to begin the run")
        run = _Run(trainer, corpus, books)
        run.save()
        # Only now: what has a config.toml can be resumed, and this run could not begin again from its seed.
        if books:
            write_file(books.folder / "config.toml", config.to_toml().encode())
        return run.go()


@dataclass(frozen=True)
class _Source:
    """What a run continues from."""

    config: Config
    epoch: int
    info: Mapping[str, Any]
    """checkpoint.json, if it is a checkpoint."""
    params: Params | None = None
    """None: the seed's."""
    states: Callable[[], np.ndarray] | None = None
    """Reads them, (N, L, D) int8; None: zeros."""


def _of_all(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those config fields that all ranks of a job have to agree on."""
    return {name: fields[name] for name in sorted(fields) if name not in LOCAL}


def _config_of(source: _Source | None, changes: Mapping[str, Any], world: World) -> Config:
    """The config that rank 0 has found, with what this rank has its own way."""
    config = from_dict(world.tell(asdict(source.config) if source else None, "the run's configuration"))
    return config.replace(**{name: changes[name] for name in changes if name in LOCAL})


def _prepared(
    config: Config,
    world: World,
    source: _Source | None = None,
    check: Callable[[Corpus], object] = lambda corpus: None,
) -> tuple[Corpus, Trainer]:
    """The caches and the trainer of each rank, in step.

    Args:
        source: what rank 0 has to continue from.
        check: raises InputError where these caches are not the right ones; called on rank 0.
    """
    world.timeout = config.timeout
    corpus = world.together(lambda: Corpus(config), "all ranks to open their caches")
    corpus.agree(world)
    world.on_root(lambda: check(corpus), "rank 0 to compare the caches")
    whole, reads, epoch = world.tell(
        source and (source.params is not None, source.states is not None, source.epoch), "where to begin"
    ) or (False, False, 0)
    params, states = None, None
    if whole:
        params = spread_params(source.params if source else None, config, world)
    if reads:
        states = spread_states(source.states() if source and source.states else None, config, world)
    trainer = world.together(
        lambda: Trainer(config, corpus.train, params=params, states=states, epoch=epoch, world=world),
        "all ranks to be ready",
    )
    return corpus, trainer


class _Run:
    """A run between two epochs: the trainer on every rank, and on rank 0 the books that it keeps."""

    def __init__(self, trainer: Trainer, corpus: Corpus, books: Books | None) -> None:
        self.trainer, self.corpus, self.books = trainer, corpus, books
        self.config, self.world = trainer.config, trainer.world

    def go(self) -> int:
        """Trains up to the last epoch or until a signal; the exit code."""
        try:
            with Stop(together=self.world.size > 1) as stop:
                self._first(stop)
                while self.trainer.epoch < self.config.num_epochs and not stop.signal:
                    self._epoch(stop)
                self.save()
        finally:
            if self.books:
                self.books.close()
        if self.books:
            self.books.report(stop.signal)
            return 130 if stop.signal == signal.SIGINT else 0
        return 0

    def _first(self, stop: Stop) -> None:
        """Validates and saves what the run begins with, unless that was done."""
        new, saved = self.world.tell(self.books and self.books.begun(), "rank 0 to look at the run")
        if new:
            validation = stop.attempt(partial(self._validate, self.trainer.params))
            if validation is None:
                return
            if self.books:
                self.books.log(None, validation)
        if not saved:
            self.save()

    def _epoch(self, stop: Stop) -> None:
        """One epoch: computed and validated whole, and only then written down and made the trainer's state."""
        computed = stop.attempt(partial(self._compute, stop))
        if computed is None:
            return
        epoch, validation = computed
        if self.books:
            self.books.vote(epoch.result)
        self.trainer.accept(epoch)
        if self.books:
            self.books.log(epoch.result, validation)
        stop.heard(epoch.flags)
        if _due(self.trainer.epoch, self.config.checkpoint_every):
            self.save()
        elif _due(self.trainer.epoch, self.config.check_every):
            self._compare()

    def _compute(self, stop: Stop) -> tuple[Epoch, Evaluation | None]:
        epoch = self.trainer.propose(flag=lambda: stop.came or 0)
        done = epoch.result.epoch + 1
        if done == self.config.num_epochs or _due(done, self.config.validate_every):
            return epoch, self._validate(epoch.params)
        return epoch, None

    def _validate(self, params: Params) -> Evaluation:
        return evaluate(params, self.corpus.valid, self.config, world=self.world)

    def _compare(self) -> None:
        """Raises JobError where the ranks have not the same parameters."""
        self.world.compare(lambda: params_digest(self.trainer.params), f"the parameters of epoch {self.trainer.epoch}")

    def save(self) -> None:
        """Puts a checkpoint of the present state in place, once all ranks are found to have the same."""
        self._compare()
        states = self.trainer.gather_states()
        size = self.config.population * self.config.n_layer * self.config.n_embd

        def write() -> None:
            if self.books:
                self.books.save(states)

        self.world.on_root(write, "rank 0 to write a checkpoint", expected=size / SLOW_DISK)


def _changed(config: Config, changes: Mapping[str, Any], folder: Path) -> Config:
    """The config with harmless changes; InputError names the others."""
    changed = config.replace(**changes)
    before, after = asdict(config), asdict(changed)
    refused = [name for name in after if name not in HARMLESS and before[name] != after[name]]
    if refused:
        what = ", ".join(f"{name} = {after[name]!r} (it is {before[name]!r})" for name in refused)
        raise InputError(
            f"A resumed run has to stay what it was, but {folder} would get {what}; what may change is "
            f"{', '.join(HARMLESS)}, and `--branch` begins another run with its parameters."
        )
    return changed


def _votes_from(path: Path, config: Config, epoch: int) -> AppendOnly:
    """The votes of a resumed run, cut back to its epoch."""
    if epoch == 0 or not path.exists():
        return start_votes(path, config, epoch)
    size = size_before(path, epoch)
    if size is None:
        raise InputError(
            f"{path} is damaged: it ends before epoch {epoch}, which the newest checkpoint has; move it away to go on "
            "with a new one, without which the epochs up to here cannot be replayed."
        )
    return AppendOnly(path, size)


def _set_aside(folder: Path, epoch: int) -> None:
    """Renames the checkpoints after `epoch`: those that turned out damaged, whose epochs are now done again."""
    for newer in checkpoint.folders(folder):
        if checkpoint.epoch_of(newer) > epoch:
            number = 1
            while (aside := folder / f"damaged-{newer.name}-{number}").exists():
                number += 1
            newer.rename(aside)


def _due(epochs: int, every: int) -> bool:
    return every > 0 and epochs % every == 0
