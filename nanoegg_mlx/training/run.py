"""A training run between two epochs: validations, records and checkpoints around the trainer.

    <checkpoints>/<name>/config.toml      the config; `--resume` reads it
                         votes.bin        the fitness log: the whole run in kilobytes (store/fitness_log.py)
                         metrics.jsonl    one line an epoch (store/metrics.py)
                         epoch-00000100/  checkpoints (store/checkpoint.py), with the links `latest` and `best`

In a job of several processes only rank 0 reads and writes these files. `launch.py` opens a run.
"""

from __future__ import annotations

from functools import partial

from nanoegg_mlx.core.params import Params
from nanoegg_mlx.measure.evaluate import Evaluation, evaluate
from nanoegg_mlx.ranks.partition import params_digest
from nanoegg_mlx.training.caches import SLOW_DISK, Caches
from nanoegg_mlx.training.recorder import NullRecorder, Outcome
from nanoegg_mlx.training.signals import StopSignals
from nanoegg_mlx.training.trainer import Epoch, Trainer


class Run:
    """A run: on every rank the trainer, on rank 0 a recorder."""

    def __init__(self, trainer: Trainer, caches: Caches, recorder: NullRecorder) -> None:
        self.trainer, self.caches, self.recorder = trainer, caches, recorder
        self.config, self.world = trainer.config, trainer.world

    def go(self) -> Outcome | None:
        """Trains up to the last epoch or until a signal. Returns the outcome on rank 0, None on the others."""
        try:
            with StopSignals(shared=self.world.size > 1) as stop:
                self._begin(stop)
                while self.trainer.epoch < self.config.num_epochs and not stop.signal:
                    self._epoch(stop)
                self._save()
        finally:
            self.recorder.close()
        return self.recorder.outcome(stop.signal)

    def _begin(self, stop: StopSignals) -> None:
        """Validates and saves the state that the run starts with, unless it was done before."""
        new, saved = self.world.broadcast(self.recorder.begun(), "rank 0 to look at the run")
        if new:
            validation = stop.attempt(partial(self._validate, self.trainer.model))
            if validation is None:
                return
            self.recorder.record_metrics(None, validation)
        if not saved:
            self._save()

    def _epoch(self, stop: StopSignals) -> None:
        """One epoch: computed and validated as a whole, and only then recorded and made the trainer's state."""
        computed = stop.attempt(partial(self._compute, stop))
        if computed is None:
            return
        epoch, validation = computed
        # If an append fails, no checkpoint includes the epoch, so a resumed run can truncate both files before it.
        self.recorder.record_fitness(epoch.result)
        self.trainer.accept(epoch)
        self.recorder.record_metrics(epoch.result, validation)
        stop.record(epoch.flags)
        if _due(self.trainer.epoch, self.config.checkpoint_every):
            self._save()
        elif _due(self.trainer.epoch, self.config.check_every):
            self._check_ranks()

    def _compute(self, stop: StopSignals) -> tuple[Epoch, Evaluation | None]:
        epoch = self.trainer.propose(flag=lambda: stop.received or 0)
        done = epoch.result.epoch + 1
        if done == self.config.num_epochs or _due(done, self.config.validate_every):
            return epoch, self._validate(epoch.model)
        return epoch, None

    def _validate(self, model: Params) -> Evaluation:
        return evaluate(model, self.caches.valid, self.config, world=self.world)

    def _check_ranks(self) -> None:
        """Raises JobError if the ranks' parameters differ."""
        what = f"the parameters of epoch {self.trainer.epoch}"
        self.world.check_same_digest(lambda: params_digest(self.trainer.params, self.trainer.sums), what)

    def _save(self) -> None:
        """Writes a checkpoint of the present state, after the check that all ranks have the same parameters."""
        self._check_ranks()
        states = self.trainer.gather_states()
        size = self.config.population * self.config.n_layer * self.config.n_embd
        self.world.run_on_root(
            lambda: self.recorder.save(states), "rank 0 to write a checkpoint", expected=size / SLOW_DISK
        )


def _due(epochs: int, every: int) -> bool:
    return every > 0 and epochs % every == 0
