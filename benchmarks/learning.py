"""Learning curves: bits per byte of the validation set against text read and against processor time.

    python benchmarks/learning.py --text 10e6 --seeds 3 --methods weights,error,perturb,mingru -o curves.json
    python benchmarks/learning.py --text 10e6 --methods lane --members 32 -o lane.json
    python benchmarks/learning.py --text 10e6 --methods lane+ --members 32 --share 0.5 -o averaged.json
    python benchmarks/learning.py --draw curves.json --picture docs/learning     # learning-light.svg, learning-dark.svg

The methods: perturbed weights; nudged activations with head_rule error (also with decorrelated inputs, and with these
and a baseline for each lane) and perturb, each of which with + behind its name averages its parameters; and in floats
by backpropagation the same minGRU (mingru) and a transformer, by Adam or SGD. All read the same batches of --train (the
quickstart's corpus by default), with one update for each: a lane of text has --members members, or one row of a float
batch, so an evolution strategy reads each byte as often. Time is that of the processor, all threads together: it hardly
depends on what else the machine does. MLX's floats on a Linux CPU use the reference BLAS; with
LD_PRELOAD=libopenblas.so.0 (Debian: libopenblas0-pthread) they are several times as fast.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from presets import scheduled

from nanoegg_mlx import Config, Trainer, validate
from nanoegg_mlx.engines.machine import machine
from nanoegg_mlx.measure.baselines import bigram, gzip
from nanoegg_mlx.measure.evaluate import validation_rows
from nanoegg_mlx.show.style import COLOURS, STYLE
from nanoegg_mlx.store.tokens import Lanes, load_tokens
from nanoegg_mlx.training.backprop import Descent, Learner

Point = tuple[int, float, float]
"""Bytes of text read, seconds of the processor in training, bits per byte of the validation set."""
METHODS = {
    "weights": "perturbed weights",
    "error": "nudged activations, head by its error",
    "decorrelated": "nudged activations, decorrelated inputs",
    "lane": "nudged activations, a baseline for each lane",
    "perturb": "nudged activations, head nudged too",
    "mingru": "the same network in floats, backpropagation and Adam",
    "transformer-adam": "transformer, backpropagation and Adam",
    "transformer-sgd": "transformer, backpropagation and SGD",
}
EVOLUTION = ("weights", "error", "decorrelated", "lane", "perturb")
RATES = {"mingru": 0.03, "transformer-adam": 1e-3, "transformer-sgd": 0.1}
"""Learning rates, the best of some at 2 million bytes (docs/learning.md)."""


def curve(method: str, config: Config, share: float, rate: float, points: int) -> Iterator[Point]:
    """Trains one method for the config's epochs, and validates it at so many points of equal ratios."""
    if _evolves(method):
        step, evaluate = _evolution(method, config, share)
    else:
        step, evaluate = _backpropagation(method, config, rate or RATES[method])
    seconds, epoch = 0.0, 0
    for stop in _stops(config.num_epochs, points):
        started = time.process_time()
        while epoch < stop:
            step(epoch)
            epoch += 1
        seconds += time.process_time() - started
        yield stop * config.lanes * config.tokens_per_update, seconds, evaluate()


def _evolves(method: str) -> bool:
    return method.partition("+")[0] in EVOLUTION


def _evolution(method: str, base: Config, share: float) -> tuple[Callable[[int], object], Callable[[], float]]:
    kind, averaged, _ = method.partition("+")
    nudged: dict[str, Any] = {"perturb": "activations", "head_rule": "perturb" if kind == "perturb" else "error"}
    nudged |= {"decorrelate": kind in ("decorrelated", "lane"), "antithetic": kind != "lane"}
    own = {"sigma_shift": 3} if kind == "weights" else nudged
    config = scheduled(base.replace(**own, average=bool(averaged)), base.num_epochs, share)
    trainer, valid = Trainer(config, load_tokens(config.train)), load_tokens(config.valid)
    return lambda epoch: trainer.step(), lambda: validate(trainer.model, valid, config)[1]


def _backpropagation(method: str, config: Config, rate: float) -> tuple[Callable[[int], object], Callable[[], float]]:
    kind, _, optimizer = method.partition("-")
    descent = Descent(optimizer or "adam", learning_rate=rate, micro_batch=512 if kind == "mingru" else 128)
    learner, lanes = Learner(config, descent, kind), Lanes(load_tokens(config.train), config)
    rows = validation_rows(load_tokens(config.valid), config.validation_batch_size)
    return (
        lambda epoch: learner.step(learner.gradient(*lanes.batch(epoch))),
        lambda: learner.evaluate(rows, config.tokens_per_update),
    )


def title(method: str) -> str:
    """A curve's name in tables and pictures: METHODS, and the members of each lane if they are not two."""
    name, _, members = method.partition(" x")
    kind, averaged, _ = name.partition("+")
    return METHODS[kind] + (f", {members} members" if members else "") + (", averaged" if averaged else "")


def _stops(epochs: int, points: int) -> list[int]:
    return sorted({round(stop) for stop in np.geomspace(epochs, max(epochs / 100, 1), points)})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All curves of the options, as JSON."""
    tokens_per_update = 50
    base = Config(
        n_layer=options.layers,
        n_embd=options.width,
        population=options.members * options.lanes,
        group_size=options.members,
        tokens_per_update=tokens_per_update,
        num_epochs=max(round(options.text / (options.lanes * tokens_per_update)), 1),
        train=options.train,
        valid=options.valid,
    )
    curves: dict[str, list[list[Point]]] = {}
    for method in options.methods.split(","):
        name = f"{method} x{options.members}" if _evolves(method) and options.members != 2 else method
        curves[name] = []
        for seed in range(options.seeds):
            points = []
            for point in curve(method, base.replace(seed=seed), options.share, options.rate, options.points):
                points.append(point)
                print(f"{name:<18} seed {seed} {point[0]:>12,} bytes {point[1]:>8.1f} s {point[2]:7.4f}", flush=True)
            curves[name].append(points)
    valid = load_tokens(options.valid)
    return {
        "command": " ".join(["python benchmarks/learning.py", *sys.argv[1:]]),
        "machine": machine(),
        "model": [options.layers, options.width],
        "bigram": bigram(valid),
        "gzip": gzip(valid),
        "curves": curves,
    }


def table(measured: dict[str, Any]) -> str:
    """The last point of each method: mean and spread over the seeds, as Markdown."""
    lines = ["| method | text read | processor seconds | bits per byte | seeds |", "|---|---|---|---|---|"]
    for method, seeds in measured["curves"].items():
        ends = [points[-1] for points in seeds]
        bits = [end[2] for end in ends]
        spread = f" ± {statistics.stdev(bits):.3f}" if len(bits) > 1 else ""
        seconds = statistics.median(end[1] for end in ends)
        lines.append(
            f"| {title(method)} | {ends[0][0] / 1e6:.1f} M | {seconds:.0f} | {statistics.mean(bits):.3f}{spread} | "
            f"{len(bits)} |"
        )
    return "\n".join(lines)


def draw(measured: dict[str, Any], picture: str) -> None:
    """Writes <picture>-light.svg and <picture>-dark.svg: against tokens and against seconds."""
    import matplotlib
    from matplotlib.figure import Figure

    for scheme, ink, grid, page in (
        ("light", "#1f2328", "#d9dde1", "#ffffff"),
        ("dark", "#e6e9ec", "#343b43", "#0e1116"),
    ):
        recoloured = {key: ink for key in STYLE if key.endswith("color") and key not in ("grid.color",)}
        with matplotlib.rc_context({**STYLE, **recoloured, "grid.color": grid, "axes.edgecolor": grid}):
            figure = Figure(figsize=(11, 5), layout="constrained", facecolor=page)
            for column, (place, label) in enumerate(((0, "bytes of text read"), (1, "seconds of the processor"))):
                axes = figure.add_subplot(1, 2, column + 1)
                axes.set_facecolor(page)
                for (method, seeds), colour in zip(measured["curves"].items(), (*COLOURS, ink), strict=False):
                    points = np.array(seeds)
                    x, bits = np.median(points[:, :, place], axis=0), points[:, :, 2]
                    axes.fill_between(x, bits.min(axis=0), bits.max(axis=0), color=colour, alpha=0.25, linewidth=0)
                    axes.plot(x, bits.mean(axis=0), color=colour, label=title(method), marker="o", markersize=3)
                for name in ("bigram", "gzip"):
                    axes.axhline(measured[name], color=ink, alpha=0.6, linewidth=1, linestyle=(0, (4, 3)))
                    axes.annotate(name, (0, measured[name]), (4, 3), ("axes fraction", "data"), "offset points",
                                  fontsize=8.5, color=ink)  # fmt: skip
                axes.set_xscale("log")
                axes.set_xlabel(label)
                axes.set_ylabel("bits per byte")
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
            figure.savefig(f"{picture}-{scheme}.svg", metadata={"Date": None}, facecolor=page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="weights,error,perturb", help=", ".join(METHODS) + "; NAME+: averaged")
    parser.add_argument("--text", type=float, default=10e6, help="bytes of text that each curve reads (default: 10e6)")
    parser.add_argument("--share", type=float, default=0.2, help="of entries moved by noise at the end (default: 0.2)")
    parser.add_argument("--rate", type=float, default=0, help=f"learning rate of floats (default: {RATES})")
    parser.add_argument("--points", type=int, default=14, help="of each curve, where it is validated (default: 14)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--layers", type=int, default=1, help="(default: 1)")
    parser.add_argument("--width", type=int, default=64, help="(default: 64)")
    parser.add_argument("--lanes", type=int, default=512, help="of text (default: 512)")
    parser.add_argument("--members", type=int, default=2, help="of an evolution strategy for each lane (default: 2)")
    parser.add_argument("--train", default="data/python-stdlib_train.npy", help="training cache")
    parser.add_argument("--valid", default="data/python-stdlib_valid.npy", help="validation cache")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="JSON file for the curves")
    parser.add_argument("--draw", type=Path, nargs="+", metavar="FILE", help="draw such files instead of training")
    parser.add_argument("--picture", default="learning", help="name of the pictures, without ending")
    options = parser.parse_args()
    if options.draw:
        parts = [json.loads(path.read_text()) for path in options.draw]
        measured = {**parts[0], "curves": {name: part["curves"][name] for part in parts for name in part["curves"]}}
        draw(measured, options.picture)
    else:
        measured = measure(options)
        if options.output:
            options.output.write_text(json.dumps(measured, indent=1) + "\n")
    print(table(measured))


if __name__ == "__main__":
    main()
