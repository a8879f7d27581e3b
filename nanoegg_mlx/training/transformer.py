"""The comparison of the paper's kind: a byte-level transformer of the same depth and width, trained by backpropagation.

It reads what a run of the same config reads: an epoch's batch is the S lanes x T tokens of spec section 6, and one step
of stochastic gradient descent is taken on it. Its context are the tokens_per_update bytes of its window and no more,
while the recurrent model carries its state along. Validation takes the rows of section 8, window by window.
The figures go into a metrics.jsonl like a run's, so that both curves lie on one plot; `tokens` counts the bytes of text
that were read, each lane's once, and not a population's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
from nanoegg_mlx.store.metrics import MetricsFile, Record, resident_mb
from nanoegg_mlx.store.tokens import Lanes
from nanoegg_mlx.training.caches import Corpus
from nanoegg_mlx.training.recorder import new_folder
from nanoegg_mlx.training.signals import Stop

_HEAD = 64
"""Width of an attention head."""


@dataclass(frozen=True)
class Descent:
    """How the gradient is followed. Raises InputError, naming the value and its range, for a bad one."""

    learning_rate: float = 0.03
    """Six layers of width 256 diverge at first with 0.1; small models bear, and need, more."""
    momentum: float = 0.9
    micro_batch: int = 64
    """Windows that a gradient is worked out for at a time: bounds memory, and changes nothing but rounding."""

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
        """Layers, width, vocabulary and context are the config's. Raises InputError for a width heads do not divide."""
        super().__init__()
        width = config.n_embd
        if width > _HEAD and width % _HEAD:
            raise InputError(
                f"n_embd = {width} cannot be cut into attention heads; it has to be a multiple of {_HEAD}, or less."
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
    """A transformer's parameters and the optimiser that moves them. The seed is the config's."""

    def __init__(self, config: Config, descent: Descent) -> None:
        mx.random.seed(config.seed)
        model = Transformer(config)
        self.params: Any = model.parameters()
        mx.eval(self.params)
        self.optimizer = optim.SGD(descent.learning_rate, descent.momentum)
        self.micro_batch = descent.micro_batch

        def bits(params: Any, inputs: mx.array, targets: mx.array) -> mx.array:
            """Code length of all targets together, in bits; `inputs` and `targets` are (B, T)."""
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
        """How many numbers the parameters are."""
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
        """Moves the parameters along."""
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


def train(config: Config, descent: Descent, as_json: bool = False) -> int:
    """Trains a transformer for `config.num_epochs` epochs into `<checkpoints>/<name>-transformer`, a new folder.

    It holds metrics.jsonl, transformer.json (config and descent), and at the end model.safetensors.

    Returns:
        The command's exit code: 0 also after SIGTERM, 130 after Ctrl-C; the model is saved as it is then.

    Raises:
        InputError: config and caches do not fit, and nothing has been written then; or the loss is no number any more.
    """
    corpus = Corpus(config)
    lanes = Lanes(corpus.train, config)
    rows = validation_rows(corpus.valid, config.validation_batch_size)
    learner = Learner(config, descent)
    with ExitStack() as stack:
        folder = new_folder(config.replace(name=f"{config.name}-transformer"))
        stack.callback(Lock(folder).release)
        about = {
            "config": dataclasses.asdict(config),
            "descent": dataclasses.asdict(descent),
            "parameters": learner.size,
        }
        write_file(folder / "transformer.json", json.dumps(about, indent=2).encode())
        lines = MetricsFile(folder / "metrics.jsonl", 0)
        stack.callback(lines.close)
        say(
            f"{folder}: transformer of {learner.size:,} parameters, {config.n_layer} layer{'s' * (config.n_layer > 1)}"
            f", {config.n_embd} wide, {config.num_epochs} epochs of {config.lanes} x {config.tokens_per_update} tokens"
        )
        with Stop() as stop:
            _epochs(config, learner, lanes, rows, lines, stop)
            with HashedFile(folder / "model.safetensors") as file:
                mx.save_safetensors(file, learner.named_params())
                file.finish()
    last = lines.last_validation
    if as_json:
        print(json.dumps({"run": str(folder), "parameters": learner.size, **(last or {})}))
    elif last:
        print(f"{folder}: {last['validation']:.4f} bits per byte of the validation set after {last['epoch']} epochs")
    return 130 if stop.signal == signal.SIGINT else 0


def _epochs(config: Config, learner: Learner, lanes: Lanes, rows: np.ndarray, lines: MetricsFile, stop: Stop) -> None:
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
                raise InputError(f"The loss is {loss} in epoch {epoch}; learning_rate = {rate:g} has to be smaller.")
            learner.step(gradients)
            tokens += inputs.size
            figures = {"loss_mean": loss, "tokens_per_second": inputs.size / (time.perf_counter() - begun)}
        validation = None
        if epoch in (0, config.num_epochs) or (config.validate_every and epoch % config.validate_every == 0):
            validation = stop.attempt(partial(learner.evaluate, rows, context))
        lines.append(
            {"epoch": epoch, "tokens": tokens, **figures, "validation": validation, "validation_exact": validation}
            | {"seconds": time.perf_counter() - started, "rss_mb": resident_mb()}
        )
        if figures:
            say(f"epoch {epoch}: loss {figures['loss_mean']:.4f}, {figures['tokens_per_second']:,.0f} tokens/s")
        if validation is not None:
            say(f"epoch {epoch}: validation {validation:.4f} bits per byte")
        if stop.signal:
            return


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg baseline transformer`, beside the config's."""
    parser.description = (
        "Trains a byte-level transformer by SGD on the batches that a run with the same config reads, into a new "
        "folder <name>-transformer under --checkpoints, with a metrics.jsonl like a run's. Every key of the config is "
        "an option; population and group_size say how many lanes are read."
    )
    group = parser.add_argument_group("gradient descent")
    default = Descent()
    group.add_argument(
        "--learning-rate", type=float, default=default.learning_rate, metavar="X", help="(default: %(default)s)"
    )
    group.add_argument("--momentum", type=float, default=default.momentum, metavar="X", help="(default: %(default)s)")
    group.add_argument(
        "--micro-batch",
        type=int,
        default=default.micro_batch,
        metavar="N",
        help="windows in memory at a time, whose gradients are added up (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
