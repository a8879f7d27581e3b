"""Searches for a preset: trains each of some settings for the same time, and prints a table of the results.

    python benchmarks/presets.py --seconds 30 population=1024,4096 n_embd=64,128 share=0.1,0.2
    python benchmarks/presets.py --seconds 150 --config configs/quickstart.toml share=0.05

Every argument NAME=VALUE,VALUE,... is a field of the config, or `share`: the share of entries that pure noise would
move at the end of a run, where it starts at 1 (it sets alpha_decay_timestep). The rows are all combinations. The number
of epochs comes from the measured speed, without validation; a row that is repeated with that number gives the same bits
on any machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanoegg_mlx import Config, Trainer, validate
from nanoegg_mlx.store.tokens import load_tokens

SHOWN = ("n_layer", "n_embd", "population", "tokens_per_update", "group_size")
ALPHA = 4.0


def scheduled(config: Config, epochs: int, share: float) -> Config:
    """The config with an alpha that falls from 1 to `share` within `epochs`."""
    steps = round((2**ALPHA - 1) * epochs / (1 / share - 1)) if share < 1 else 2**62
    return config.replace(alpha=ALPHA, alpha_decay_timestep=max(steps, 1), num_epochs=epochs)


def measured_epochs(config: Config, seconds: float) -> int:
    """The number of epochs that `seconds` of training allow, from a few epochs after a first one."""
    trainer = Trainer(config, load_tokens(config.train))
    trainer.step()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < max(seconds / 30, 1.0):
        trainer.step()
        done += 1
    return max(round(seconds * done / (time.perf_counter() - started)), 1)


def row(config: Config, share: float, seconds: float, epochs: int) -> dict[str, Any]:
    """Trains one setting and validates it at the end."""
    epochs = epochs or measured_epochs(config, seconds)
    config = scheduled(config, epochs, share)
    trainer = Trainer(config, load_tokens(config.train))
    started = time.perf_counter()
    for _ in range(epochs):
        trainer.step()
    trained = time.perf_counter() - started
    _, bits = validate(trainer.model, load_tokens(config.valid), config)
    return {
        **{name: getattr(config, name) for name in SHOWN},
        "share": share,
        "epochs": epochs,
        "million tokens": round(epochs * config.population * config.tokens_per_update / 1e6, 1),
        "seconds": round(trained, 1),
        "bits per byte": round(bits, 4),
    }


def combinations(arguments: list[str]) -> list[dict[str, Any]]:
    """All combinations of the values of the arguments."""
    names, values = [], []
    for argument in arguments:
        name, _, text = argument.partition("=")
        names.append(name)
        values.append([_value(one) for one in text.split(",")])
    return [dict(zip(names, one, strict=True)) for one in itertools.product(*values)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart-pairs.toml", help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="training time of each row (default: 30)")
    parser.add_argument("--epochs", type=int, default=0, help="instead of a time")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ... of each row (default: 1)")
    parser.add_argument("fields", nargs="*", metavar="NAME=VALUE,...", help="fields of the config, or share")
    options = parser.parse_intermixed_args()
    base = Config.from_toml(options.config)
    titles: list[str] = []
    for changes in combinations(options.fields):
        share = float(changes.pop("share", 0.2))
        for seed in range(options.seeds):
            figures = {**changes, **row(base.replace(**changes, seed=seed), share, options.seconds, options.epochs)}
            if options.seeds > 1:
                figures["seed"] = seed
            if not titles:
                titles = list(figures)
                print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
            print("| " + " | ".join(str(figures[title]) for title in titles) + " |", flush=True)


if __name__ == "__main__":
    main()
