"""The command line, `nanoegg train` and the others. Thin: every command is a call of the Python API.

Exit codes: 0 done, 2 bad input (one sentence after `error: `), 3 a process of the job was lost, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import numpy as np
from tqdm import tqdm

import data_prep.__main__ as prepare
from nanoegg_mlx.commands import baseline, bench, plot, report, sample
from nanoegg_mlx.commands import inspect as inspection
from nanoegg_mlx.commands.options import Help, add_config_options, given_config
from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, init_params
from nanoegg_mlx.engines import make_engine, native_problem
from nanoegg_mlx.errors import InputError, JobError, ToldElsewhere
from nanoegg_mlx.measure import baselines
from nanoegg_mlx.measure.evaluate import Evaluation, evaluate
from nanoegg_mlx.ranks import world as distributed
from nanoegg_mlx.show import tracking
from nanoegg_mlx.store import checkpoint, durable
from nanoegg_mlx.store.tokens import read_text
from nanoegg_mlx.training import replay, run


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, like all others here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name (sys.argv's by default) and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except ToldElsewhere:
        return 2
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return distributed.LOST
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}:{where}; nothing was overwritten.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _parser() -> Parser:
    parser = Parser(
        prog="nanoegg",
        description="Integer-only language models, pretrained with evolution strategies.",
    )
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=Parser)

    command = commands.add_parser("prepare", help="text -> uint8 token caches")
    prepare.add_arguments(command)
    command.set_defaults(command=prepare.run)

    command = commands.add_parser("train", help="pretrain a model", formatter_class=Help)
    command.description = "Trains a model into a new folder under --checkpoints; every key of the config is an option."
    command.add_argument("--config", metavar="FILE", help="TOML file; options override its keys")
    start = command.add_mutually_exclusive_group()
    start.add_argument("--resume", metavar="RUN", help="continue the run in this folder, bit for bit")
    start.add_argument("--branch", metavar="RUN@E", help="begin a new run with what RUN had learnt after E epochs")
    command.add_argument(
        "--track",
        action="append",
        default=[],
        choices=sorted(tracking.TRACKERS),
        help="follow the run there as well; may be given twice, and again with --resume",
    )
    add_config_options(command)
    command.set_defaults(command=_train)

    command = commands.add_parser("eval", help="bits per byte of a checkpoint", formatter_class=Help)
    command.description = (
        "Measures a checkpoint on a token cache (.npy) or a text file: the reference's integer figure and the exact, "
        "normalised one with its standard error over documents. A text file is one document: a 0 byte and its bytes."
    )
    command.add_argument("checkpoint", help="a run's folder (its newest checkpoint) or one checkpoint's")
    command.add_argument("text", nargs="?", help="token cache or text file (default: the run's validation cache)")
    command.add_argument(
        "--rows",
        type=int,
        metavar="B",
        help="rows that the text is cut into, read in parallel from zero states (default: the run's "
        "validation_batch_size, or 1 if the text is too short for that)",
    )
    command.add_argument(
        "--by-position",
        action="store_true",
        help="bits per byte of a document's byte 1, 2, 3-4, 5-8 ...",
    )
    command.add_argument(
        "--baselines", action="store_true", help="unigram, bigram, trigram, gzip and xz of the same bytes"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(command=_evaluate)

    _add(commands, "sample", sample)
    _add(commands, "inspect", inspection)
    _add(commands, "baseline", baseline)

    command = commands.add_parser("replay", help="any epoch's parameters, from a run's votes alone")
    command.description = (
        "Rebuilds the exact parameters of an epoch from votes.bin, without data and without a forward pass."
    )
    command.add_argument("run", help="a run's folder")
    command.add_argument("--epoch", type=int, metavar="E", help="epochs done, from 1")
    command.add_argument("-o", "--output", metavar="FILE", help="safetensors file to write")
    command.add_argument("--verify", action="store_true", help="compare with every checkpoint that the run has kept")
    command.add_argument("--engine", choices=("auto", "mlx", "cpu"), default="auto", help="(default: auto)")
    command.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU engine (0: all usable cores)")
    command.set_defaults(command=_replay)

    _add(commands, "plot", plot)
    _add(commands, "report", report)
    _add(commands, "bench", bench)

    command = commands.add_parser("info", help="engine, instruction set, threads, MLX device and versions")
    command.description = "Tells what this machine would train with."
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(command=_info)
    return parser


def _add(commands: Any, name: str, module: Any) -> None:
    command = commands.add_parser(name, help=module.HELP)
    module.add_arguments(command)
    command.set_defaults(command=module.run)


def _train(options: argparse.Namespace) -> int:
    given = given_config(options)
    patience = given.get("timeout")
    world = distributed.join(patience if isinstance(patience, float) else distributed.TIMEOUT)

    def configure() -> Config | None:
        tracking.need(options.track)
        if options.config:
            return Config.from_toml(options.config, **given)
        # What a run that exists is changed by need not go with the defaults.
        return None if options.resume or options.branch else Config(**given)

    config = world.together(configure, "all ranks to read their configuration")
    if config and not (options.resume or options.branch):
        return run.train(config, world, options.track)
    if config:
        given = dataclasses.asdict(config)
    if options.resume:
        return run.resume(Path(options.resume), given, world, options.track)
    source, _, epochs = options.branch.rpartition("@")
    if not source or not epochs.isdecimal() or int(epochs) < 1:
        raise InputError(f"--branch {options.branch} is not allowed; it has to be a run's folder, '@' and an epoch.")
    return run.branch(Path(source), int(epochs), given, world, options.track)


def _replay(options: argparse.Namespace) -> int:
    votes = Path(options.run) / "votes.bin"
    if options.verify:
        return _verify(Path(options.run), options)
    if options.epoch is None or options.output is None:
        raise InputError("A replay needs --epoch E and -o FILE, or --verify.")
    output = Path(options.output)
    if output.exists():
        raise InputError(f"{output} exists already; a replay overwrites nothing.")
    config, params = replay.params_at(votes, options.epoch, options.engine, options.threads)
    with durable.HashedFile(output) as file:
        mx.save_safetensors(file, params)
        digest = file.finish()
    print(f"{output}: parameters after {options.epoch} epochs, {config.n_layer} layers, {config.n_embd} wide")
    print(f"SHA-256 {digest}")
    return 0


def _verify(folder: Path, options: argparse.Namespace) -> int:
    """Holds every stored checkpoint of a run against its votes; 1 if one differs."""
    stored = {checkpoint.epoch_of(path): path for path in checkpoint.folders(folder)}
    if not stored:
        raise InputError(f"The folder {folder} holds no checkpoint to verify.")
    different, done, started = 0, 0, time.perf_counter()

    def compare(epoch: int, params: Params) -> None:
        nonlocal different
        if epoch in stored:
            kept = checkpoint.open_whole(stored.pop(epoch)).params
            names = [name for name in kept if not np.array_equal(np.array(kept[name]), np.array(params[name]))]
            different += bool(names)
            print(f"epoch {epoch}: " + (f"differs in {', '.join(names)}" if names else "the same bits"))

    for done, config, params in replay.replay(folder / "votes.bin", options.engine, options.threads):
        if done == 1:
            compare(0, init_params(config))
        compare(done, params)
        if not stored:
            break
    print(f"{done} epochs replayed in {time.perf_counter() - started:.1f} s")
    for epoch in sorted(stored):
        print(f"epoch {epoch}: the votes end before it")
    return 1 if different or stored else 0


def _evaluate(options: argparse.Namespace) -> int:
    opened = checkpoint.load(options.checkpoint)
    text = Path(options.text or opened.config.valid)
    tokens = read_text(text)
    rows = options.rows
    if rows is None:
        rows = opened.config.validation_batch_size
        if len(tokens) < 2 * rows:
            rows = 1
    config = opened.config.replace(validation_batch_size=rows)
    with tqdm(total=len(tokens), unit="B", unit_scale=True, disable=options.json or None) as bar:
        evaluation = evaluate(opened.params, tokens, config, bar.update)
    figures = {name: figure(tokens) for name, figure in baselines.BASELINES.items()} if options.baselines else {}
    if options.json:
        print(
            json.dumps(
                {
                    "checkpoint": str(opened.path),
                    "epoch": opened.epoch,
                    "text": str(text),
                    **dataclasses.asdict(evaluation),
                    **figures,
                }
            )
        )
    else:
        print(_table(opened, text, evaluation, figures, options.by_position))
    return 0


def _info(options: argparse.Namespace) -> int:
    about = info()
    if options.json:
        print(json.dumps(about))
    else:
        print("\n".join(f"{name:<18} {value}" for name, value in about.items()))
    return 0


def info() -> dict[str, Any]:
    """What this machine would train with: engine, instruction set, threads, MLX device, versions."""
    about: dict[str, Any] = {"engine": make_engine(Config()).name}
    problem = native_problem()
    if problem is None:
        from nanoegg_mlx.engines.cpu import instruction_sets

        native = instruction_sets()
        about["instruction set"] = native["isa"]
        about["also available"] = ", ".join(name for name in native["available"] if name != native["isa"]) or "none"
        about["threads"] = native["threads"]
    else:
        about["CPU engine"] = f"not there: {problem}"
    about["MLX device"] = str(mx.default_device())
    for package in ("nanoegg-mlx", "mlx", "numpy", "pyarrow", "datasets"):
        about[package] = metadata.version(package)
    about["python"] = platform.python_version()
    return about


def _table(
    opened: checkpoint.Checkpoint, text: Path, evaluation: Evaluation, figures: dict[str, float], by_position: bool
) -> str:
    error = "" if evaluation.standard_error is None else f"{evaluation.standard_error:.4f}"
    how_sure = f"standard error over {evaluation.documents:,} documents"
    if not error:
        how_sure = "no standard error: it needs two documents or more"
    lines = [
        f"{opened.path} (epoch {opened.epoch}) on {text}: {evaluation.tokens:,} tokens in "
        f"{evaluation.rows:,} row{'s' * (evaluation.rows > 1)}, "
        f"{evaluation.seconds:.1f} s",
        f"  {'bits per byte':<24} {evaluation.bits_per_byte:8.4f}            the reference's integer figure",
        f"  {'exact bits per byte':<24} {evaluation.exact_bits_per_byte:8.4f} {'±' if error else ' '} {error:<8} "
        f"normalised code length; {how_sure}",
    ]
    if by_position:
        lines.append(f"  {'byte of a document':<24} {'exact':>8} {'bytes':>14}")
        for at in evaluation.by_position:
            if at.first is None:
                name = "of one a row cut"
            else:
                name = f"{at.first:,}" if at.first == at.last else f"{at.first:,}-{at.last:,}"
            lines.append(f"  {name:<24} {at.bits_per_byte:8.4f} {at.bytes:>14,}")
    for name, value in figures.items():
        how = "of the same bytes" + (", fitted to them (empirical entropy)" if name in baselines.ORDERS else "")
        lines.append(f"  {name:<24} {value:8.4f}            {how}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
