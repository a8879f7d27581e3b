"""Training, one epoch at a time (estimators.py computes it).

An epoch is a transaction: parameters, their average, states and the epoch number change together at its end, so an
interrupt in the middle of one leaves the trainer as it was before it. Validation, metrics and checkpoints are the
caller's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core import averaging
from nanoegg_mlx.core.params import Params, check_params, init_params, leaves
from nanoegg_mlx.core.update import alpha_at, threshold_at
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.ranks.partition import gather_states
from nanoegg_mlx.ranks.score_stats import ScoreStats
from nanoegg_mlx.ranks.world import World
from nanoegg_mlx.store.tokens import Lanes
from nanoegg_mlx.training.estimators import make_estimator


@dataclass(frozen=True)
class EpochResult:
    """Results of one epoch."""

    epoch: int
    """Number of the epoch, from 0."""
    scores: np.ndarray
    """(N,) int32, each member's log-likelihood of its tokens in sixteenths of a bit; on one of several ranks those of
    its own members."""
    score_stats: ScoreStats
    """Of the scores of all members."""
    fitness: np.ndarray
    """(N/2,) int8, each pair's; (0,) with perturb = "activations"."""
    alpha: float
    threshold: int
    """Of the Z-test, in sixteenths of a standard deviation."""
    moved: dict[str, float]
    """Share of entries that the update changed, by leaf and under `matrix` and `vector`."""
    tokens: int
    """Tokens that the population read, N T."""
    generate_seconds: float
    exchange_seconds: float
    """Until the fitness of all ranks was received. 0 for one process."""
    update_seconds: float
    sharded: bool = False
    """Whether each rank summed the votes of its own pairs only."""
    signal: dict[str, float] = field(default_factory=dict)
    """With perturb = "activations": mean of Z^2 / S by leaf, 1 for pure noise."""
    credit_rms: float | None = None
    """With perturb = "activations": of the tokens' credit, in sixteenths of a bit."""
    engine_figures: dict[str, Any] = field(default_factory=dict)
    """About the engine: its measurement in the first epoch with engine = "auto", MLX's share of the members."""

    @property
    def losses(self) -> np.ndarray:
        """Each of the `scores` as a loss in bits per byte, float64."""
        return -self.scores / self._sixteenths

    @property
    def loss_mean(self) -> float:
        """Over all members, in bits per byte; so are the others."""
        return -self.score_stats.mean / self._sixteenths

    @property
    def loss_min(self) -> float:
        return -self.score_stats.most / self._sixteenths

    @property
    def loss_max(self) -> float:
        return -self.score_stats.least / self._sixteenths

    @property
    def loss_std(self) -> float:
        return self.score_stats.std / self._sixteenths

    @property
    def _sixteenths(self) -> int:
        """Divisor from a member's score to bits per byte: 16 T."""
        return 16 * (self.tokens // self.score_stats.count)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / (self.generate_seconds + self.exchange_seconds + self.update_seconds)

    def figures(self) -> dict[str, Any]:
        """The epoch's figures under the names that they have in metrics.jsonl (store/metrics.py describes them)."""
        figures: dict[str, Any] = {
            "loss_mean": self.loss_mean,
            "loss_min": self.loss_min,
            "loss_max": self.loss_max,
            "loss_std": self.loss_std,
            "ties": float(np.mean(self.fitness == 0)) if len(self.fitness) else None,
            "moved_matrix": self.moved["matrix"],
            "moved_vector": self.moved["vector"],
            "alpha": self.alpha,
            "threshold": self.threshold,
            "tokens_per_second": self.tokens_per_second,
            "generate_seconds": self.generate_seconds,
            "update_seconds": self.update_seconds,
            "exchange_seconds": self.exchange_seconds,
            "sharded": self.sharded,
            **self.engine_figures,
        }
        if self.signal:
            figures["credit_rms"] = self.credit_rms
            for leaf, signal in self.signal.items():
                figures |= {f"moved.{leaf}": self.moved[leaf], f"signal.{leaf}": signal}
        return figures


@dataclass(frozen=True)
class Epoch:
    """A computed epoch that is not yet the trainer's state."""

    result: EpochResult
    params: Params
    sums: Params | None
    """Of averaged parameters, None without `average`."""
    states: np.ndarray
    """(N, L, D) int8, of the rank's own members."""
    flags: tuple[int, ...]
    """The flag that each rank passed to `propose`."""

    @property
    def model(self) -> Params:
        """What the run has learnt with this epoch, as `Trainer.model`."""
        return averaging.model(self.params, self.sums, self.result.epoch + 1)


class Trainer:
    """The state of a run and its one operation, `step`; `propose` and `accept` are its two halves."""

    def __init__(
        self,
        config: Config,
        train_tokens: np.ndarray,
        *,
        params: Params | None = None,
        sums: Params | None = None,
        states: np.ndarray | mx.array | None = None,
        epoch: int = 0,
        world: World | None = None,
    ) -> None:
        """Starts a run, or continues one from the content of a checkpoint.

        Args:
            config: the run's configuration.
            train_tokens: (size,) uint8; may be memory-mapped.
            params: leaf name -> int8 array; the initial ones of the seed if not given.
            sums: with `average` those of averaged parameters (core/averaging.py), leaf name -> int16 array; the ones
                that begin with `params` if not given.
            states: (N, L, D) int8, every member's hidden state; zeros if not given. On one of several ranks those of
                its own members (ranks.partition.members_of).
            epoch: epochs already done.
            world: the job's processes; by default this one alone.

        Raises:
            InputError: tokens too few, of the wrong kind or outside the vocabulary, or arrays of other shapes
                than the config's.
        """
        self.config = config
        self.world = world = World() if world is None else world
        self.lanes = Lanes(train_tokens, config)
        self._estimator = make_estimator(config, self.lanes, world)
        self.members, self.engine = self._estimator.members, self._estimator.engine
        self.params = init_params(config) if params is None else params
        check_params(self.params, config)
        self.sums = sums
        if config.average and sums is None:
            self.sums = averaging.start(self.params, epoch)
        averaging.check_sums(self.sums, config, epoch)
        shape = (len(self.members), config.n_layer, config.n_embd)
        self._states = np.zeros(shape, np.int8) if states is None else np.array(states)
        if self._states.shape != shape or self._states.dtype != np.int8:
            raise InputError(
                f"The array of member states is {self._states.dtype} of shape {self._states.shape}; for this "
                f"population, n_layer and n_embd it must be int8 of shape {shape}."
            )
        self.epoch = epoch

    @property
    def model(self) -> Params:
        """The model that the run has learnt: leaf name -> int8 array, averaged with `average`, or else `params`."""
        return averaging.model(self.params, self.sums, self.epoch)

    @property
    def states(self) -> mx.array:
        """(N, L, D) int8, every member's hidden state; on one of several ranks those of its own members."""
        return mx.array(self._states)

    def gather_states(self) -> np.ndarray | None:
        """(N, L, D) int8, every member's hidden state, on rank 0; None on the others. All ranks must call it."""
        return gather_states(self._states, self.config, self.world)

    def step(self) -> EpochResult:
        """One epoch: every member reads T tokens and is scored, then the parameters move along the votes."""
        epoch = self.propose()
        self.accept(epoch)
        return epoch.result

    def propose(self, flag: Callable[[], int] = lambda: 0) -> Epoch:
        """Computes the next epoch and leaves the trainer's state as it is.

        Args:
            flag: called after the rank's members are scored; its result, 0 to 255, reaches all ranks with this epoch.
        """
        config = self.config
        estimate = self._estimator.epoch(self.params, self._states, self.epoch, flag)
        moved = moved_shares(config, self.params, estimate.params)
        result = EpochResult(
            epoch=self.epoch,
            scores=estimate.scores,
            score_stats=estimate.gathered.scores,
            fitness=estimate.gathered.fitness,
            alpha=alpha_at(config, self.epoch),
            threshold=threshold_at(config, self.epoch),
            moved=moved,
            tokens=config.population * config.tokens_per_update,
            generate_seconds=estimate.generate_seconds,
            exchange_seconds=estimate.gathered.seconds,
            update_seconds=estimate.update_seconds,
            **estimate.figures,
        )
        sums = None if self.sums is None else averaging.add(self.sums, estimate.params, self.epoch)
        return Epoch(result, estimate.params, sums, estimate.states, estimate.gathered.flags)

    def accept(self, epoch: Epoch) -> None:
        """Makes the result of `propose` the trainer's state."""
        self.params, self.sums, self._states = epoch.params, epoch.sums, epoch.states
        self.epoch = epoch.result.epoch + 1


def moved_shares(config: Config, before: Params, after: Params) -> dict[str, float]:
    """The share of entries that differ: by leaf, and over all leaves of each kind (`matrix`, `vector`)."""
    changed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for leaf in leaves(config):
        count = int(np.count_nonzero(np.array(before[leaf.name] != after[leaf.name])))
        for name in (leaf.name, leaf.kind):
            changed[name] += count
            total[name] += before[leaf.name].size
    return {name: changed[name] / total[name] for name in total}
