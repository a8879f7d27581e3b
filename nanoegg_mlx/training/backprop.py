"""Float models trained by backpropagation, for comparison with the runs of evolution strategies.

A model reads the text of a run of the same config: an epoch's batch is the S lanes x T tokens of spec section 6, with
one step of gradient descent. The transformer's context is the window of tokens_per_update bytes; the float minGRU keeps
its state from epoch to epoch as the integer model does, and its gradients stop at the window's start. Validation reads
the rows of section 8, window by window. The figures are written to a metrics.jsonl like a run's, so that one plot can
show both curves; `tokens` counts each lane's bytes once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map

from nanoegg_mlx.config import Config
from nanoegg_mlx.errors import InputError, check_settings
from nanoegg_mlx.measure.evaluate import validation_rows
from nanoegg_mlx.store.durable import HashedFile, Lock, write_file
from nanoegg_mlx.store.metrics import MetricsFile, Record, record, resident_mb
from nanoegg_mlx.store.tokens import Lanes
from nanoegg_mlx.training.caches import Caches
from nanoegg_mlx.training.float_models import MODELS
from nanoegg_mlx.training.launch import new_folder
from nanoegg_mlx.training.signals import StopSignals


@dataclass(frozen=True)
class Descent:
    """Settings of the gradient descent. Raises InputError, naming the value and its range, for a bad one."""

    optimizer: str = "sgd"
    """`sgd` or `adam`."""
    learning_rate: float = 0.03
    """Transformers by SGD: six layers of width 256 diverge at first with 0.1; small models allow, and need, more."""
    momentum: float = 0.9
    """Of SGD."""
    micro_batch: int = 64
    """Windows in one gradient computation: bounds memory, and changes only rounding."""

    def __post_init__(self) -> None:
        rules = {
            "optimizer": (self.optimizer in ("sgd", "adam"), "'sgd' or 'adam'"),
            "learning_rate": (0 < self.learning_rate < math.inf, "a number above 0"),
            "momentum": (0 <= self.momentum < 1, "a number from 0 to below 1"),
            "micro_batch": (self.micro_batch >= 1, "a whole number of at least 1"),
        }
        check_settings(self, rules)


class Gradient(NamedTuple):
    """Of one batch."""

    loss: float
    """Bits per byte."""
    tree: Any
    """Of the mean loss in nats, by parameter."""
    states: np.ndarray
    """(S, ...) of the lanes, after the batch."""


class Learner:
    """A model's parameters, their optimiser, and the states of its lanes. The seed is the config's."""

    def __init__(self, config: Config, descent: Descent, kind: str = "transformer") -> None:
        mx.random.seed(config.seed)
        self._model = model = MODELS[kind](config)
        self.params: Any = model.parameters()
        mx.eval(self.params)
        self.states = np.array(model.start(config.lanes))
        """(S, ...) float32, of the lanes, after the last step."""
        self.optimizer: optim.Optimizer = (
            optim.Adam(descent.learning_rate)
            if descent.optimizer == "adam"
            else optim.SGD(descent.learning_rate, descent.momentum)
        )
        self.micro_batch = descent.micro_batch

        def bits(params: Any, states: mx.array, inputs: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
            """Code length of all targets together, in bits, and the next states; inputs and targets are (B, T)."""
            model.update(params)
            logits, states = model(inputs, states)
            return nn.losses.cross_entropy(logits, targets, reduction="sum") / math.log(2), states

        def logits(params: Any, states: mx.array, inputs: mx.array) -> mx.array:
            model.update(params)
            return model(inputs, states)[0]

        self._bits = mx.compile(bits)
        self._gradient = mx.compile(mx.value_and_grad(bits))
        self._logits = mx.compile(logits)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(value.size for value in self.named_params().values())

    def named_params(self) -> dict[str, mx.array]:
        """The parameters by name, as they are saved."""
        return dict(tree_flatten(self.params))

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """(B, T, V) float32 of inputs (B, T), T at most tokens_per_update, from the state before a text."""
        return np.array(self._logits(self.params, self._model.start(len(inputs)), mx.array(inputs)))

    def gradient(self, inputs: np.ndarray, targets: np.ndarray) -> Gradient:
        """The gradient on a batch (S, T) of all lanes. Changes nothing."""
        total, sums, states = 0.0, None, np.empty_like(self.states)
        for part in self._parts(len(inputs)):
            (value, after), gradients = self._gradient(
                self.params, mx.array(self.states[part]), mx.array(inputs[part]), mx.array(targets[part])
            )
            sums = gradients if sums is None else tree_map(mx.add, sums, gradients)
            mx.eval(value, sums, after)
            total += float(value)
            states[part] = np.array(after)
        scale = math.log(2) / inputs.size
        return Gradient(total / inputs.size, tree_map(lambda gradient: gradient * scale, sums), states)

    def step(self, gradient: Gradient) -> None:
        """One step of the optimiser; the lanes' states are then those after the batch."""
        self.params = self.optimizer.apply_gradients(gradient.tree, self.params)
        self.states = gradient.states
        mx.eval(self.params, self.optimizer.state)

    def evaluate(self, rows: np.ndarray, context: int) -> float:
        """Bits per byte of rows (B, m) uint8, all but each one's first byte, read in windows of `context` bytes."""
        total = 0.0
        for part in self._parts(len(rows)):
            states = self._model.start(len(rows[part]))
            for start in range(0, rows.shape[1] - 1, context):
                window = mx.array(rows[part, start : start + context + 1])
                value, states = self._bits(self.params, states, window[:, :-1], window[:, 1:])
                mx.eval(value, states)
                total += float(value)
        return total / (rows.size - len(rows))

    def _parts(self, size: int) -> Iterator[slice]:
        return (slice(first, first + self.micro_batch) for first in range(0, size, self.micro_batch))


@dataclass(frozen=True)
class BackpropOutcome:
    """The end of a training."""

    folder: Path
    parameters: int
    """Number of parameters."""
    validation: Record | None
    """The last line of the metrics with a validation."""
    stopped: signal.Signals | None
    """The signal that ended the training before its last epoch."""


def train(
    config: Config,
    descent: Descent,
    message: Callable[[str], object] = lambda text: None,
    kind: str = "transformer",
) -> BackpropOutcome:
    """Trains a float model for `config.num_epochs` epochs into `<checkpoints>/<name>-<kind>`, a new folder.

    The folder gets metrics.jsonl, <kind>.json (config and descent), and at the end, or after SIGINT or SIGTERM,
    model.safetensors.

    Args:
        config: sizes, lanes, caches and epochs, as for a run.
        descent: settings of the gradient descent.
        message: receives the lines of a log.
        kind: of float_models.MODELS.

    Raises:
        InputError: config and caches do not fit, and nothing has been written then; or the loss is not finite.
    """
    caches = Caches(config)
    lanes = Lanes(caches.train, config)
    rows = validation_rows(caches.valid, config.validation_batch_size)
    learner = Learner(config, descent, kind)
    with ExitStack() as held:
        folder = new_folder(config.replace(name=f"{config.name}-{kind}"))
        held.callback(Lock(folder).release)
        about = {
            "config": dataclasses.asdict(config),
            "descent": dataclasses.asdict(descent),
            "parameters": learner.size,
        }
        write_file(folder / f"{kind}.json", json.dumps(about, indent=2).encode())
        lines = MetricsFile(folder / "metrics.jsonl", 0)
        held.callback(lines.close)
        message(
            f"{folder}: {kind} of {learner.size:,} parameters, {config.n_layer} layer{'s' * (config.n_layer > 1)}"
            f", {config.n_embd} wide, {config.num_epochs} epochs of {config.lanes} x {config.tokens_per_update} tokens"
        )
        with StopSignals() as stop:
            _epochs(config, learner, lanes, rows, lines, stop, message)
            with HashedFile(folder / "model.safetensors") as file:
                mx.save_safetensors(file, learner.named_params())
                file.finish()
    return BackpropOutcome(folder, learner.size, lines.last_validation, stop.signal)


def _epochs(
    config: Config,
    learner: Learner,
    lanes: Lanes,
    rows: np.ndarray,
    lines: MetricsFile,
    stop: StopSignals,
    message: Callable[[str], object],
) -> None:
    """Trains until the last epoch or a signal; each line is written when its epoch is done."""
    started = time.perf_counter()
    context, tokens = config.tokens_per_update, 0
    figures: Record = {}
    for epoch in range(config.num_epochs + 1):
        if epoch:
            begun = time.perf_counter()
            inputs, targets = lanes.batch(epoch - 1)
            computed = stop.attempt(partial(learner.gradient, inputs, targets))
            if computed is None:
                return
            if not math.isfinite(computed.loss):
                rate = float(learner.optimizer.learning_rate)
                raise InputError(f"The loss of epoch {epoch} is {computed.loss}; learning_rate must be below {rate:g}.")
            learner.step(computed)
            tokens += inputs.size
            figures = {"loss_mean": computed.loss, "tokens_per_second": inputs.size / (time.perf_counter() - begun)}
        validation = None
        if epoch in (0, config.num_epochs) or (config.validate_every and epoch % config.validate_every == 0):
            validation = stop.attempt(partial(learner.evaluate, rows, context))
        lines.append(
            record(epoch, tokens, figures, validation, validation)
            | {"seconds": time.perf_counter() - started, "rss_mb": resident_mb()}
        )
        if figures:
            message(f"epoch {epoch}: loss {figures['loss_mean']:.4f}, {figures['tokens_per_second']:,.0f} tokens/s")
        if validation is not None:
            message(f"epoch {epoch}: validation {validation:.4f} bits per byte")
        if stop.signal:
            return
