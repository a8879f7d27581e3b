"""`nanoegg replay`: the parameters of any epoch, rebuilt from a run's fitness log."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from nanoegg_mlx.commands.options import add_engine_options
from nanoegg_mlx.core.params import Params, init_params
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.durable import HashedFile
from nanoegg_mlx.training.replay import params_at, replay

HELP = "any epoch's parameters, from a run's fitness log alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg replay`."""
    parser.description = (
        "Rebuilds the exact parameters of an epoch from votes.bin, the fitness log, without data and without a forward "
        "pass."
    )
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("--epoch", type=int, metavar="E", help="epochs done, from 1")
    parser.add_argument("-o", "--output", metavar="FILE", help="safetensors file to write")
    parser.add_argument("--verify", action="store_true", help="compare with every checkpoint of the run")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> int:
    """Rebuilds, or verifies: returns 1 if a checkpoint differs, else 0."""
    if options.verify:
        return _verify(Path(options.run), options)
    if options.epoch is None or options.output is None:
        raise InputError("--epoch or --output is missing; a replay must have both, or --verify.")
    output = Path(options.output)
    checkpoint.outside_checkpoints(output)
    if output.exists():
        raise InputError(f"{output} exists; the output of a replay must be a new file.")
    config, params = params_at(Path(options.run) / "votes.bin", options.epoch, options.engine, options.threads)
    with HashedFile(output) as file:
        mx.save_safetensors(file, params)
        digest = file.finish()
    print(f"{output}: parameters after {options.epoch} epochs, {config.n_layer} layers, {config.n_embd} wide")
    print(f"SHA-256 {digest}")
    return 0


def _verify(folder: Path, options: argparse.Namespace) -> int:
    """Compares every stored checkpoint of a run with the replay of its fitness log."""
    stored = {checkpoint.epoch_of(path): path for path in checkpoint.folders(folder)}
    if not stored:
        raise InputError(f"The folder {folder} has no checkpoint; it must have at least one to verify.")
    different, done, started = 0, 0, time.perf_counter()

    def compare(epoch: int, params: Params) -> None:
        nonlocal different
        if epoch in stored:
            kept = checkpoint.open_whole(stored.pop(epoch)).params
            names = [name for name in kept if not np.array_equal(np.array(kept[name]), np.array(params[name]))]
            different += bool(names)
            print(f"epoch {epoch}: " + (f"differs in {', '.join(names)}" if names else "the same bits"))

    for done, config, params in replay(folder / "votes.bin", options.engine, options.threads):
        if done == 1:
            compare(0, init_params(config))
        compare(done, params)
        if not stored:
            break
    print(f"{done} epochs replayed in {time.perf_counter() - started:.1f} s")
    for epoch in sorted(stored):
        print(f"epoch {epoch}: not in the fitness log, which ends before it")
    return 1 if different or stored else 0
