"""Progress of a run on standard error: a bar on a terminal, plain lines elsewhere.

A log has a line for every validation, and a line for every epoch but at most two a second. metrics.jsonl has all lines.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from functools import partial

from tqdm import tqdm

from nanoegg_mlx.config import Config
from nanoegg_mlx.store.metrics import Record

PLAIN_SECONDS = 0.5
"""Minimum time between two plain lines of epochs without a validation."""


class Display:
    """A bar with a line of details below it, or plain lines."""

    def __init__(self, config: Config, epochs: int) -> None:
        """Starts at `epochs` done of `config.num_epochs`."""
        self.terminal = sys.stderr.isatty()
        self.begun, self.last_epoch = epochs, config.num_epochs
        self.started = time.monotonic()
        bar = partial(tqdm, disable=not self.terminal, dynamic_ncols=True, leave=False)
        self.bar = bar(
            total=config.num_epochs,
            initial=epochs,
            unit="epoch",
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        )
        self.details = bar(total=0, position=1, bar_format="{desc}")
        self.validation: float | None = None
        self.printed = float("-inf")

    def message(self, text: str) -> None:
        """Prints a line for the user, above the bar."""
        self.bar.write(text, file=sys.stderr)

    def record(self, line: Record) -> None:
        """Shows a line of the metrics."""
        validation = line["validation"]
        if validation is not None:
            self.validation = validation
        if "loss_mean" in line:
            if self.terminal:
                self._draw(line)
            elif (
                validation is not None
                or line["epoch"] == self.last_epoch
                or time.monotonic() - self.printed >= PLAIN_SECONDS
            ):
                self._print(line)
        if validation is not None:
            exact = line["validation_exact"]
            self.message(f"epoch {line['epoch']}: validation {validation:.4f} bits per byte (exact {exact:.4f})")
        if "sample" in line:
            self.message("\n".join(f"  | {text}" for text in line["sample"].split("\n")))

    def _draw(self, line: Record) -> None:
        columns = _columns()
        figures = [f"loss {line['loss_mean']:.3f}", _rate(line)]
        if self.validation is not None:
            figures.insert(1, f"valid {self.validation:.3f}")
        # 38 columns hold the percentage, the count, the times and a part of the bar.
        self.bar.set_postfix_str(fitting(figures, columns - 38), refresh=False)
        self.details.set_description_str("     " + fitting(_details(line), columns - 5), refresh=False)
        if self.bar.update():
            self.details.refresh()

    def _print(self, line: Record) -> None:
        self.printed = time.monotonic()
        left = (self.printed - self.started) / max(line["epoch"] - self.begun, 1) * (self.last_epoch - line["epoch"])
        figures = [f"loss {line['loss_mean']:.3f}", _rate(line), f"{tqdm.format_interval(left)} left", *_details(line)]
        self.message(f"epoch {line['epoch']}: {', '.join(figures)}")

    def close(self) -> None:
        """Removes the bar."""
        self.details.close()
        self.bar.close()


def fitting(parts: Iterable[str], columns: int) -> str:
    """Returns the first parts that fit into a line of a terminal, separated by commas."""
    text = ""
    for part in parts:
        longer = f"{text}, {part}" if text else part
        if len(longer) >= columns:
            break
        text = longer
    return text


def _columns() -> int:
    """Returns the width of the terminal, or 80 if it is unknown."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _rate(line: Record) -> str:
    return f"{tqdm.format_sizeof(line['tokens_per_second'])} tokens/s"


def _details(line: Record) -> list[str]:
    """Returns further figures of an epoch, the most important first."""
    credit = line.get("credit_rms")
    return [
        f"moved {line['moved_matrix']:.1%} of matrices",
        f"{line['moved_vector']:.1%} of vectors",
        f"threshold {line['threshold'] / 16:.2f} sd",
        *([] if credit is None else [f"credit {credit / 16:.2f} bits"]),
        f"losses {line['loss_min']:.2f} to {line['loss_max']:.2f}",
        f"generate {line['generate_seconds']:.3f} s",
        f"update {line['update_seconds']:.3f} s",
    ]
