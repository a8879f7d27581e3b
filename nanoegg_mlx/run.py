"""A training run: it begins, resumes or branches, and leaves everything in a folder of its own.

    <checkpoints>/<name>/config.toml      the config; `--resume` reads it
                         votes.bin        the fitness of every epoch: the whole run in kilobytes (votes.py)
                         metrics.jsonl    one line an epoch (metrics.py)
                         epoch-00000100/  checkpoints (checkpoint.py), with the links `latest` and `best`

The order of writing is what makes a run exact: an epoch's vote and line are appended before the checkpoint that
includes it is put in place, and after a crash both are cut back to the checkpoint that is resumed.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nanoegg_mlx import baselines, checkpoint, display, metrics
from nanoegg_mlx.config import HARMLESS, Config
from nanoegg_mlx.data import check_vocabulary, fingerprint, load_tokens
from nanoegg_mlx.durable import AppendOnly, Lock, sync_folder, write_file
from nanoegg_mlx.engines import missed_speed
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.evaluate import Evaluation, evaluate, validation_rows
from nanoegg_mlx.machine import machine
from nanoegg_mlx.replay import params_at
from nanoegg_mlx.sample import generate, text_of
from nanoegg_mlx.tracking import Tracking
from nanoegg_mlx.train import Epoch, Trainer
from nanoegg_mlx.votes import config_frame, size_before, start_votes, vote_frame

T = TypeVar("T")


def train(config: Config, track: Sequence[str] = ()) -> int:
    """Trains a new run for `config.num_epochs` epochs into a new folder under `config.checkpoints`.

    Args:
        config: the run's.
        track: names of tracking.TRACKERS.

    Returns:
        The command's exit code: 0 also after SIGTERM, 130 after Ctrl-C; the last whole epoch is in a checkpoint.

    Raises:
        InputError: the config and the caches do not fit; nothing has been written then.
        OSError: the disk is full or fails; the newest whole checkpoint stays, and the run can be resumed.
    """
    corpus = Corpus(config)
    trainer = Trainer(config, corpus.train)
    with ExitStack() as stack:
        folder = new_folder(config)
        stack.callback(Lock(folder).release)
        write_file(folder / "config.toml", config.to_toml().encode())
        votes = start_votes(folder / "votes.bin", config)
        return _Run(folder, trainer, corpus, votes, {}, track).go()


def resume(folder: Path, changes: Mapping[str, Any], track: Sequence[str] = ()) -> int:
    """Continues a run bit for bit from its newest whole checkpoint.

    Args:
        folder: the run's.
        changes: config fields with their new values; those that decide the result have to be what they were.
        track: names of tracking.TRACKERS.

    Returns, raises:
        As `train`; also InputError where the run is in use, has nothing to resume, would change, or where the
        caches do not hold what it was trained on.
    """
    if not (folder / "config.toml").exists():
        raise InputError(f"There is no run to resume in {folder}; a run's folder has a config.toml.")
    with ExitStack() as stack:
        stack.callback(Lock(folder).release)
        config = _changed(Config.from_toml(folder / "config.toml"), changes, folder)
        corpus = Corpus(config)
        opened = checkpoint.load(folder) if checkpoint.folders(folder) else None
        if opened:
            corpus.check(opened.info.get("data"), folder)
            trainer = Trainer(config, corpus.train, params=opened.params, states=opened.states(), epoch=opened.epoch)
        else:
            trainer = Trainer(config, corpus.train)
        votes = _votes_from(folder / "votes.bin", config, trainer.epoch)
        checkpoint.remove_leftovers(folder)
        _set_aside(folder, trainer.epoch)
        write_file(folder / "config.toml", config.to_toml().encode())
        return _Run(folder, trainer, corpus, votes, opened.info if opened else {}, track).go()


def branch(source: Path, epochs: int, changes: Mapping[str, Any], track: Sequence[str] = ()) -> int:
    """Begins a new run with the parameters that another one had after `epochs` epochs.

    They come from the source's checkpoint of that epoch, and the members' states with them; where there is none, from
    its votes, and the states are zeros. The new run's votes.bin and metrics.jsonl begin with the source's.

    Args:
        source: the other run's folder.
        epochs: epochs done, at least 1.
        changes: config fields with their new values; n_layer, n_embd and vocab_size have to be what they were.
        track: names of tracking.TRACKERS.

    Returns, raises:
        As `train`; also InputError where the source has no such epoch or another model.
    """
    if not (source / "config.toml").exists():
        raise InputError(f"There is no run to branch from in {source}; a run's folder has a config.toml.")
    config = Config.from_toml(source / "config.toml").replace(**changes)
    corpus = Corpus(config)
    info: dict[str, Any] = {}
    states: np.ndarray | None = None
    folder = source / f"epoch-{epochs:08d}"
    if folder.exists():
        opened = checkpoint.open_whole(folder)
        params, info = opened.params, opened.info
        if opened.states().shape == (config.population, config.n_layer, config.n_embd):
            states = opened.states()
    else:
        _, params = params_at(source / "votes.bin", epochs, config.engine, config.threads)
    trainer = Trainer(config, corpus.train, params=params, states=states, epoch=epochs)
    whole = size_before(source / "votes.bin", epochs)
    if whole is None:
        raise InputError(f"{source / 'votes.bin'} holds less than {epochs} epochs; branch from an earlier one.")
    with (source / "votes.bin").open("rb") as file:
        past = file.read(whole)
    with ExitStack() as stack:
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
        run = _Run(folder, trainer, corpus, votes, info, track)
        run.save()
        # Only now: what has a config.toml can be resumed, and this run could not begin again from its seed.
        write_file(folder / "config.toml", config.to_toml().encode())
        return run.go()


class Corpus:
    """The two caches of a run, checked against its config."""

    def __init__(self, config: Config) -> None:
        """Raises InputError where a cache is missing, damaged, too short or has bytes outside the vocabulary."""
        self.valid = load_tokens(config.valid)
        check_vocabulary(validation_rows(self.valid, config.validation_batch_size).ravel(), config.vocab_size)
        self.train = load_tokens(config.train)
        self._names = {"train": config.train, "valid": config.valid}

    def identity(self) -> dict[str, dict[str, Any]]:
        """Sizes and SHA-256 of both, for checkpoint.json."""
        return {"train": fingerprint(self.train), "valid": fingerprint(self.valid)}

    def check(self, recorded: Any, run: Path) -> None:
        """Raises InputError where the caches are not those that `identity` recorded."""
        now = self.identity()
        for name, path in self._names.items():
            if not isinstance(recorded, dict) or recorded.get(name) != now[name]:
                raise InputError(f"The cache {path} is not the one that {run} was trained with: its content differs.")


def new_folder(config: Config) -> Path:
    """Creates `<checkpoints>/<name>`, or with the first free number behind the name: no run is overwritten."""
    parent = Path(config.checkpoints)
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


class _Run:
    """A run between two epochs: the trainer, and the files that it writes."""

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        corpus: Corpus,
        votes: AppendOnly,
        info: Mapping[str, Any],
        track: Sequence[str],
    ) -> None:
        self.folder, self.trainer, self.corpus, self.votes = folder, trainer, corpus, votes
        self.config = trainer.config
        self.metrics = metrics.MetricsFile(folder / "metrics.jsonl", trainer.epoch)
        last = self.metrics.last or {}
        self.tokens = int(info.get("tokens", last.get("tokens", 0)))
        self.seconds = float(info.get("seconds", last.get("seconds", 0.0)))
        self.data = corpus.identity()
        self.display = display.Display(self.config, trainer.epoch)
        self.tracking = Tracking(track, folder, self.config, trainer.epoch, self.display.say)
        self.started = time.perf_counter()

    def go(self) -> int:
        """Trains up to the last epoch or until a signal; the exit code."""
        config, trainer = self.config, self.trainer
        begun = trainer.epoch
        self.display.say(
            f"{self.folder}: {config.n_layer} layer{'s' * (config.n_layer > 1)}, {config.n_embd} wide, "
            f"population {config.population}, epochs {begun} to {config.num_epochs} of "
            f"{config.population * config.tokens_per_update:,} tokens, engine {trainer.engine.name}"
        )
        if note := missed_speed(config):
            self.display.say(note)
        try:
            with Stop() as stop:
                self._first(stop)
                while trainer.epoch < config.num_epochs and not stop.signal:
                    self._epoch(stop)
                self.save()
        finally:
            self.display.close()
            self.votes.close()
            self.metrics.close()
            self.tracking.close()
        epochs = trainer.epoch - begun
        print(f"{epochs} epochs in {time.perf_counter() - self.started:,.1f} s; checkpoint {self.folder / 'latest'}")
        if stop.signal:
            print(f"Stopped by {stop.signal.name} after epoch {trainer.epoch} of {config.num_epochs}; ", end="")
            print(f"`nanoegg train --resume {self.folder}` goes on.")
        print(summary(self.metrics.validations, self.corpus.valid))
        return 130 if stop.signal == signal.SIGINT else 0

    def _first(self, stop: Stop) -> None:
        """Validates and saves what the run begins with, unless that was done."""
        if not self.metrics.last and self.trainer.epoch == 0:
            validation = stop.attempt(partial(evaluate, self.trainer.params, self.corpus.valid, self.config))
            if validation is None:
                return
            self._log(metrics.record(0, 0, None, validation))
        if not checkpoint.folders(self.folder):
            self.save()

    def _epoch(self, stop: Stop) -> None:
        """One epoch: computed and validated whole, and only then written down and made the trainer's state."""
        computed = stop.attempt(self._compute)
        if computed is None:
            return
        epoch, validation = computed
        self.tokens += epoch.result.tokens
        self.votes.append(vote_frame(self.config, epoch.result.epoch, epoch.result.fitness))
        self.trainer.accept(epoch)
        self._log(metrics.record(self.trainer.epoch, self.tokens, epoch.result, validation))
        if _due(self.trainer.epoch, self.config.checkpoint_every):
            self.save()

    def _compute(self) -> tuple[Epoch, Evaluation | None]:
        epoch = self.trainer.propose()
        done = epoch.result.epoch + 1
        if done == self.config.num_epochs or _due(done, self.config.validate_every):
            return epoch, evaluate(epoch.params, self.corpus.valid, self.config)
        return epoch, None

    def _log(self, line: metrics.Record) -> None:
        seconds = self.seconds + time.perf_counter() - self.started
        line |= {"seconds": seconds, "rss_mb": metrics.resident_mb()}
        if line["validation"] is not None:
            line["weights"] = metrics.weight_histogram(self.config, self.trainer.params)
        if line["validation"] is not None and self.config.sample_bytes:
            line["sample"] = self._sample()
        self.metrics.append(line)
        self.display.epoch(line)
        self.tracking.log(line)

    def _sample(self) -> str:
        """What the model writes by itself at temperature 1: the same draws at every validation."""
        config, engine = self.config, self.trainer.engine
        return text_of(generate(self.trainer.params, config, tokens=config.sample_bytes, engine=engine))

    def save(self) -> None:
        """Puts a checkpoint of the present state in place, after all that it stands on is on the disk."""
        self.votes.sync()
        self.metrics.sync()
        last = self.metrics.last or {}
        figures = last if last.get("epoch") == self.trainer.epoch else {}
        info = {
            "tokens": self.tokens,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "validation": figures.get("validation"),
            "validation_exact": figures.get("validation_exact"),
            "engine": self.trainer.engine.name,
            "machine": machine(),
            "data": self.data,
        }
        checkpoint.save(self.folder, self.trainer, info)


class Stop:
    """What SIGINT (Ctrl-C) and SIGTERM do inside the `with` block: the first asks for an end, a second ends at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that came."""
        self._abandoning = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            self._handlers = {number: signal.signal(number, self._came) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def attempt(self, compute: Callable[[], T]) -> T | None:
        """What `compute` returns, or None where a signal came before it was done; it must not change anything."""
        try:
            self._abandoning = True
            computed = compute()
            self._abandoning = False
            return computed
        except _Abandoned:
            return None
        finally:
            self._abandoning = False

    def _came(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number)
        for other in self._handlers:
            signal.signal(other, signal.SIG_DFL)
        if self._abandoning:
            raise _Abandoned


class _Abandoned(BaseException):
    """Leaves a computation that a signal has made pointless."""


def summary(validations: Sequence[metrics.Record], tokens: np.ndarray) -> str:
    """A table of some validations beside what the validation bytes' own statistics give."""
    rows = [(f"after {line['epoch']} epochs", line["validation"]) for line in validations]
    rows += [(name, baselines.BASELINES[name](tokens)) for name in ("unigram", "bigram", "gzip")]
    return "\n".join(
        ["Bits per byte of the validation set:", *[f"  {name:<18} {value:7.4f}" for name, value in dict(rows).items()]]
    )


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
