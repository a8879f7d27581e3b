"""A training run from start to finish: epochs, validation, metrics and checkpoints, in one loop.

Everything that a run leaves lies in its folder: config.toml, metrics.jsonl with one line an epoch, and checkpoints.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nanoegg_mlx import baselines
from nanoegg_mlx.checkpoint import make_run_folder, save
from nanoegg_mlx.config import Config
from nanoegg_mlx.data import check_vocabulary, load_tokens
from nanoegg_mlx.evaluate import validate, validation_rows
from nanoegg_mlx.train import EpochResult, Trainer


def train(config: Config) -> int:
    """Trains for `config.num_epochs` epochs into a new folder under `config.checkpoints`.

    Returns:
        The command's exit code: 0, or 130 after Ctrl-C; either way the last whole epoch is in a checkpoint.

    Raises:
        InputError: the config and the caches do not fit; nothing has been written then.
    """
    valid_tokens = load_tokens(config.valid)
    check_vocabulary(validation_rows(valid_tokens, config.validation_batch_size).ravel(), config.vocab_size)
    trainer = Trainer(config, load_tokens(config.train))
    run = make_run_folder(config)
    reporter = Reporter(run, config)
    started = time.perf_counter()
    reporter.line(
        f"{run}: {config.n_layer} layers, {config.n_embd} wide, population {config.population}, "
        f"{config.num_epochs} epochs of {config.population * config.tokens_per_update:,} tokens, "
        f"engine {trainer.engine.name}"
    )
    exit_code = 0
    validations: dict[int, float] = {}
    try:
        _, validations[0] = validate(trainer.params, valid_tokens, config)
        reporter.validated(0, validations[0])
        while trainer.epoch < config.num_epochs:
            result = trainer.step()
            last = trainer.epoch == config.num_epochs
            if last or _due(trainer.epoch, config.validate_every):
                _, validations[trainer.epoch] = validate(trainer.params, valid_tokens, config)
            reporter.epoch(result, validations.get(trainer.epoch))
            if last or _due(trainer.epoch, config.checkpoint_every):
                save(run, trainer, _info(trainer, validations))
    except KeyboardInterrupt:
        exit_code = 130
        reporter.line(f"Interrupted: {trainer.epoch} of {config.num_epochs} epochs are done.")
    finally:
        reporter.close()
    checkpoint = save(run, trainer, _info(trainer, validations))
    seconds = time.perf_counter() - started
    print(f"{trainer.epoch} epochs in {seconds:,.1f} s; checkpoint {checkpoint}")
    if validations:
        print(summary(validations, np.asarray(valid_tokens)))
    return exit_code


def summary(validations: dict[int, float], tokens: np.ndarray) -> str:
    """A table of the first and the last validation beside what the validation bytes' own statistics give."""
    first, last = min(validations), max(validations)
    rows = [(f"after {first} epochs", validations[first]), (f"after {last} epochs", validations[last])]
    rows += [(name, BASELINE(tokens)) for name, BASELINE in baselines.BASELINES.items() if name != "xz"]
    lines = [f"  {name:<18} {value:7.4f}" for name, value in dict(rows).items()]
    return "\n".join(["Bits per byte of the validation set:", *lines])


class Reporter:
    """Tells how a run goes: a progress bar on a terminal, else a line an epoch; metrics.jsonl always."""

    def __init__(self, run: Path, config: Config) -> None:
        self.terminal = sys.stderr.isatty()
        self.metrics = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self.bar = tqdm(total=config.num_epochs, unit="epoch", disable=not self.terminal, dynamic_ncols=True)

    def line(self, text: str) -> None:
        """One line above the bar."""
        self.bar.write(text, file=sys.stderr)

    def validated(self, epochs: int, bits_per_byte: float) -> None:
        """Shows a validation figure."""
        self.line(f"epoch {epochs}: validation {bits_per_byte:.4f} bits per byte")

    def epoch(self, result: EpochResult, validation: float | None) -> None:
        """Shows and logs one epoch."""
        losses = result.losses
        record: dict[str, Any] = {
            "epoch": result.epoch,
            "tokens": (result.epoch + 1) * result.tokens,
            "loss_mean": float(losses.mean()),
            "loss_min": float(losses.min()),
            "loss_max": float(losses.max()),
            "moved_matrix": result.moved["matrix"],
            "moved_vector": result.moved["vector"],
            "alpha": result.alpha,
            "threshold": result.threshold,
            "tokens_per_second": result.tokens_per_second,
            "generate_seconds": result.generate_seconds,
            "update_seconds": result.update_seconds,
            "validation": validation,
        }
        self.metrics.write(json.dumps(record) + "\n")
        self.metrics.flush()
        text = (
            f"loss {losses.mean():.3f} [{losses.min():.3f}, {losses.max():.3f}] "
            f"moved {result.moved['matrix']:.1%} of matrices, {result.moved['vector']:.1%} of vectors, "
            f"threshold {result.threshold}/16, {result.tokens_per_second:,.0f} tokens/s "
            f"(generate {result.generate_seconds:.2f} s, update {result.update_seconds:.2f} s)"
        )
        if self.terminal:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()
        else:
            self.line(f"epoch {result.epoch + 1}: {text}")
        if validation is not None:
            self.validated(result.epoch + 1, validation)

    def close(self) -> None:
        self.bar.close()
        self.metrics.close()


def _due(epochs: int, every: int) -> bool:
    return every > 0 and epochs % every == 0


def _info(trainer: Trainer, validations: dict[int, float]) -> dict[str, Any]:
    """What checkpoint.json says beside the epoch."""
    tokens = trainer.epoch * trainer.config.population * trainer.config.tokens_per_update
    return {"tokens": tokens, "validation": validations.get(trainer.epoch), "engine": trainer.engine.name}
