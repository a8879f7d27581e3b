"""A byte-level transformer of the same depth and width, trained by backpropagation, for comparison as in the paper.

It reads the text of a run of the same config: an epoch's batch is the S lanes x T tokens of spec section 6, with one
step of stochastic gradient descent. Its context is the window of tokens_per_update bytes, while the recurrent model
keeps its state from epoch to epoch. Validation reads the rows of section 8, window by window. The figures are written
to a metrics.jsonl like a run's, so that one plot can show both curves; `tokens` counts each lane's bytes once.
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
from typing import Any

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
from nanoegg_mlx.training.launch import new_folder
from nanoegg_mlx.training.signals import StopSignals

_HEAD = 64
"""Width of an attention head."""


@dataclass(frozen=True)
class Descent:
    """Settings of the gradient descent. Raises InputError, naming the value and its range, for a bad one."""

    learning_rate: float = 0.03
    """Six layers of width 256 diverge at first with 0.1; small models need a higher rate."""
    momentum: float = 0.9
    micro_batch: int = 64
    """Windows in one gradient computation: bounds memory, and changes only rounding."""

    def __post_init__(self) -> None:
        rules = {
            "learning_rate": (0 < self.learning_rate < math.inf, "a number above 0"),
            "momentum": (0 <= self.momentum < 1, "a number from 0 to below 1"),
            "micro_batch": (self.micro_batch >= 1, "a whole number of at least 1"),
        }
        check_settings(self, rules)


class Transformer(nn.Module):
    """Pre-norm, GELU, learnt positions: MLX's own encoder under a causal mask."""

    def __init__(self, config: Config) -> None:
        """Layers, width, vocabulary and context are the config's. Raises InputError for a bad width."""
        super().__init__()
        width = config.n_embd
        if width > _HEAD and width % _HEAD:
            raise InputError(
                f"n_embd is {width}; it must be a multiple of {_HEAD}, the width of an attention head, or less."
            )
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.tokens_per_update, width)
        self.encoder = nn.TransformerEncoder(
            config.n_layer, width, max(width // _HEAD, 1), mlp_dims=4 * width, activation=nn.gelu, norm_first=True
        )
        self.head = nn.Linear(width, config.vocab_size)

    def __call__(self, inputs: mx.array) -> mx.array:
        """Logits (B, T, V) float32 for the byte after each of `inputs` (B, T), T at most tokens_per_update."""
        length = inputs.shape[1]
        x = self.tokens(inputs) + self.positions.weight[:length]
        return self.head(self.encoder(x, nn.MultiHeadAttention.create_additive_causal_mask(length)))


class Learner:
    """A transformer's parameters and their optimiser. The seed is the config's."""

    def __init__(self, config: Config, descent: Descent) -> None:
        mx.random.seed(config.seed)
        model = Transformer(config)
        self.params: Any = model.parameters()
        mx.eval(self.params)
        self.optimizer = optim.SGD(descent.learning_rate, descent.momentum)
        self.micro_batch = descent.micro_batch

        def bits(params: Any, inputs: mx.array, targets: mx.array) -> mx.array:
            """Total code length of all targets, in bits; `inputs` and `targets` are (B, T)."""
            model.update(params)
            return nn.losses.cross_entropy(model(inputs), targets, reduction="sum") / math.log(2)

        def logits(params: Any, inputs: mx.array) -> mx.array:
            model.update(params)
            return model(inputs)

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
        """(B, T, V) float32 of inputs (B, T), T at most tokens_per_update."""
        return np.array(self._logits(self.params, mx.array(inputs)))

    def gradient(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[float, Any]:
        """Bits per byte of a batch (B, T), and the gradient of the mean loss in nats. Changes nothing."""
        total, sums = 0.0, None
        for part in self._parts(len(inputs)):
            value, gradients = self._gradient(self.params, mx.array(inputs[part]), mx.array(targets[part]))
            sums = gradients if sums is None else tree_map(mx.add, sums, gradients)
            mx.eval(value, sums)
            total += float(value)
        scale = math.log(2) / inputs.size
        return total / inputs.size, tree_map(lambda gradient: gradient * scale, sums)

    def step(self, gradients: Any) -> None:
        """One step of the optimiser."""
        self.params = self.optimizer.apply_gradients(gradients, self.params)
        mx.eval(self.params, self.optimizer.state)

    def evaluate(self, rows: np.ndarray, context: int) -> float:
        """Bits per byte of rows (B, m) uint8, all but each one's first byte, in windows that start from nothing."""
        total = 0.0
        for part in self._parts(len(rows)):
            for start in range(0, rows.shape[1] - 1, context):
                window = mx.array(rows[part, start : start + context + 1])
                total += float(self._bits(self.params, window[:, :-1], window[:, 1:]))
        return total / (rows.size - len(rows))

    def _parts(self, size: int) -> Iterator[slice]:
        return (slice(first, first + self.micro_batch) for first in range(0, size, self.micro_batch))


@dataclass(frozen=True)
class TransformerOutcome:
    """The end of a transformer's training."""

    folder: Path
    parameters: int
    """Number of parameters."""
    validation: Record | None
    """The last line of the metrics with a validation."""
    stopped: signal.Signals | None
    """The signal that ended the training before its last epoch."""


def train(config: Config, descent: Descent, message: Callable[[str], object] = lambda text: None) -> TransformerOutcome:
    """Trains a transformer for `config.num_epochs` epochs into `<checkpoints>/<name>-transformer`, a new folder.

    The folder gets metrics.jsonl, transformer.json (config and descent), and at the end, or after SIGINT or SIGTERM,
    model.safetensors.

    Args:
        config: sizes, lanes, caches and epochs, as for a run.
        descent: settings of the gradient descent.
        message: receives the lines of a log.

    Raises:
        InputError: config and caches do not fit, and nothing has been written then; or the loss is not finite.
    """
    caches = Caches(config)
    lanes = Lanes(caches.train, config)
    rows = validation_rows(caches.valid, config.validation_batch_size)
    learner = Learner(config, descent)
    with ExitStack() as held:
        folder = new_folder(config.replace(name=f"{config.name}-transformer"))
        held.callback(Lock(folder).release)
        about = {
            "config": dataclasses.asdict(config),
            "descent": dataclasses.asdict(descent),
            "parameters": learner.size,
        }
        write_file(folder / "transformer.json", json.dumps(about, indent=2).encode())
        lines = MetricsFile(folder / "metrics.jsonl", 0)
        held.callback(lines.close)
        message(
            f"{folder}: transformer of {learner.size:,} parameters, {config.n_layer} layer{'s' * (config.n_layer > 1)}"
            f", {config.n_embd} wide, {config.num_epochs} epochs of {config.lanes} x {config.tokens_per_update} tokens"
        )
        with StopSignals() as stop:
            _epochs(config, learner, lanes, rows, lines, stop, message)
            with HashedFile(folder / "model.safetensors") as file:
                mx.save_safetensors(file, learner.named_params())
                file.finish()
    return TransformerOutcome(folder, learner.size, lines.last_validation, stop.signal)


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
            loss, gradients = computed
            if not math.isfinite(loss):
                rate = float(learner.optimizer.learning_rate)
                raise InputError(f"The loss of epoch {epoch} is {loss}; learning_rate must be below {rate:g}.")
            learner.step(gradients)
            tokens += inputs.size
            figures = {"loss_mean": loss, "tokens_per_second": inputs.size / (time.perf_counter() - begun)}
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
