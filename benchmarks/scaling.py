"""Scaling over processes: one and two ranks on this machine, and a model of 8, 64 and 1,000 hosts.

python benchmarks/scaling.py [--population 512] [--tokens 100] [--rounds 3] [--epochs 5] [--json FILE]
                             [--bandwidth 10e9] [--latency 50e-6] [--hosts 8 64 1000] [--model-population 1048576]

The table has jobs of one rank, of two ranks, and of one rank with two threads, measured in turn. Each thread has a
core; MLX's ring joins the ranks over loopback. Efficiency is tokens/s a core, relative to one rank on one thread: from
the medians over all epochs, from the best epochs, and from the CPU time of all ranks in an epoch. The CPU time excludes
waiting in the ring, which does not sleep; it is more reliable than wall time while other programs use the machine.
In the model a host has two cores of this machine; docs/scaling.md has the formulas.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanoegg_mlx import Config, Trainer
from nanoegg_mlx.core.params import leaves
from nanoegg_mlx.core.update import step, vote_dtype
from nanoegg_mlx.ranks.join import join

PARTS = ("generate", "update", "step")
HEADER = 64
"""Bytes of a rank's message without its pairs: flag, seconds, score statistics and checksum, rounded up."""


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Measures some epochs on one rank of a job. The ranks use different cores.

    Returns:
        For each epoch its seconds and the CPU seconds of all ranks; medians of this rank's generate, exchange and
        update; the seconds of a small gather and of `core.update.step`; the bytes that the rank sends in an epoch.
    """
    world = join()
    threads = options["threads"]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[world.rank * threads :][:threads])
    config = Config(
        n_layer=options["layers"],
        n_embd=options["width"],
        population=options["population"],
        tokens_per_update=options["tokens"],
        engine=options["engine"],
        threads=threads,
    )
    text = np.random.default_rng(0).integers(1, 256, config.lanes * (config.tokens_per_update + 1), np.uint8)
    trainer = Trainer(config, text, world=world)
    for _ in range(5):  # `update = "auto"` has made its choice after these
        trainer.step()
    waiting = 0.0

    def outside(operation: Callable[..., Any]) -> Callable[..., Any]:
        """Counts the CPU time of waiting for other ranks: MLX's ring waits without sleeping."""

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal waiting
            before = time.process_time()
            result = operation(*arguments, **options)
            waiting += time.process_time() - before
            return result

        return counted

    for name in ("gather", "sum"):
        setattr(world, name, outside(getattr(world, name)))
    epochs, cpu, sent = [], [], world.sent
    for _ in range(options["epochs"]):
        started, spent = time.perf_counter(), time.process_time() - waiting
        result = trainer.step()
        epochs.append((time.perf_counter() - started, result))
        cpu.append(time.process_time() - waiting - spent)
    everyones = world.gather(np.array(cpu).view(np.uint8), "the CPU times")
    sent = (world.sent - sent) // options["epochs"]
    gathers, steps = [], []
    for _ in range(20):
        started = time.perf_counter()
        world.gather(np.zeros(64, np.uint8), "a small message")
        gathers.append(time.perf_counter() - started)
    Z = {name: mx.ones(value.shape, vote_dtype(config)) for name, value in trainer.params.items()}
    for _ in range(5):
        started = time.perf_counter()
        step(trainer.params, Z, config, 0)
        steps.append(time.perf_counter() - started)
    return {
        "rank": world.rank,
        "cpu": np.ascontiguousarray(everyones).view(np.float64).sum(axis=0).tolist(),
        "seconds": [seconds for seconds, _ in epochs],
        "generate": statistics.median(result.generate_seconds for _, result in epochs),
        "exchange": statistics.median(result.exchange_seconds for _, result in epochs),
        "update": statistics.median(result.update_seconds for _, result in epochs),
        "gather": statistics.median(gathers),
        "step": statistics.median(steps),
        "sent": sent,
        "sharded": epochs[-1][1].sharded,
    }


def job(ranks: int, options: dict[str, Any]) -> dict[str, Any]:
    """Runs `measure` on the ranks of a job and returns the result of rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(ranks)]))
        processes = []
        for rank in range(ranks):
            environment = {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
            if ranks == 1:
                environment = {name: value for name, value in os.environ.items() if not name.startswith("MLX_")}
            command = [sys.executable, __file__, "--measure", json.dumps(options)]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"error: a rank ended with codes {[process.returncode for process in processes]}")
    return json.loads(outputs[0].splitlines()[-1])


def free_ports(count: int) -> list[int]:
    """Returns different ports without a listener."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass(frozen=True)
class Costs:
    """The constants of the model."""

    member_token: float
    """Seconds that a host takes to score one token of one member."""
    pair: float
    """Seconds that a host takes to sum one pair's votes."""
    step: float
    """Seconds that a host takes for the step from the sums of votes to the parameters."""
    parameters: int
    tokens: int
    bandwidth: float
    """Bytes a second of a host's link, each way."""
    latency: float
    """Seconds of a message between two neighbours."""

    def gather(self, hosts: int, payload: float) -> float:
        """A ring gather: every host passes on hosts - 1 messages of `payload` bytes."""
        return (hosts - 1) * (self.latency + payload / self.bandwidth)

    def sum(self, hosts: int, payload: float) -> float:
        """A ring sum of `payload` bytes: 2 (hosts - 1) messages of a hosts-th each."""
        return 2 * (hosts - 1) * (self.latency + payload / hosts / self.bandwidth)

    def epoch(self, hosts: int, population: int, sharded: bool) -> dict[str, float]:
        """Seconds of an epoch's parts, and `bytes` that a host sends."""
        lanes = -(-population // 2 // hosts)
        message = HEADER + -(-lanes // 5)
        sums = 4 * self.parameters if sharded else 0
        replicated = self.pair * population / 2
        parts = {
            "generate": self.member_token * 2 * lanes * self.tokens,
            "fitness": self.gather(hosts, message),
            "votes": self.pair * lanes + self.step if sharded else replicated,
            "sum": self.gather(hosts, 12) + self.sum(hosts, sums) if sharded else 0.0,
        }
        parts["seconds"] = sum(parts.values())
        parts["bytes"] = (hosts - 1) * message + 2 * (hosts - 1) * sums / hosts
        alone = self.member_token * population * self.tokens + replicated
        parts["efficiency"] = alone / hosts / parts["seconds"]
        return parts

    def crossover(self, hosts: int) -> float:
        """The population above which the sharded update is the faster one."""
        extra = self.step + self.gather(hosts, 12) + self.sum(hosts, 4 * self.parameters)
        return 2 * extra / (self.pair * (1 - 1 / hosts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--population", type=int, default=512, help="of the measurement (default: 512)")
    parser.add_argument("--tokens", type=int, default=100, help="each member reads in an epoch (default: 100)")
    parser.add_argument("--layers", type=int, default=6, help="(default: 6)")
    parser.add_argument("--width", type=int, default=256, help="(default: 256)")
    parser.add_argument("--engine", choices=("auto", "cpu", "mlx", "both"), default="auto", help="(default: auto)")
    parser.add_argument("--rounds", type=int, default=3, help="jobs of one and of two ranks, in turn (default: 3)")
    parser.add_argument("--epochs", type=int, default=5, help="in each job (default: 5)")
    parser.add_argument("--bandwidth", type=float, default=10e9, help="of a host's link, bits a second (default: 10e9)")
    parser.add_argument("--latency", type=float, default=50e-6, help="of a message, seconds (default: 50e-6)")
    parser.add_argument("--hosts", type=int, nargs="+", default=[8, 64, 1000], help="(default: 8 64 1000)")
    parser.add_argument("--model-population", type=int, default=2**20, help="(default: 1048576)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(json.loads(args.measure))))
        return
    options = {name: getattr(args, name) for name in ("population", "tokens", "layers", "width", "engine", "epochs")}

    tokens = args.population * args.tokens
    # (ranks, threads of each): the last one shows the loss on this machine's cores without any exchange.
    measured: dict[tuple[int, int], list[dict[str, Any]]] = {(1, 1): [], (2, 1): [], (1, 2): []}
    for _ in range(args.rounds):
        for (ranks, threads), jobs in measured.items():
            jobs.append(job(ranks, options | {"threads": threads}))
    print(f"{args.layers} layers, {args.width} wide, population {args.population}, {args.tokens} tokens a member")
    print(
        f"{'ranks':>5}{'threads':>9}{'tokens/s':>11}{'generate':>11}{'exchange':>11}{'update':>11}{'CPU':>11}"
        f"{'bytes sent':>12}{'efficiency':>12}{'of best':>9}{'of CPU':>8}"
    )
    one_rate = one_best = one_cpu = 0.0
    for (ranks, threads), jobs in measured.items():
        seconds = [epoch for one in jobs for epoch in one["seconds"]]
        rate, best = tokens / statistics.median(seconds), tokens / min(seconds)
        cpu = statistics.median(epoch for one in jobs for epoch in one["cpu"])
        parts = [statistics.median(one[part] for one in jobs) for part in ("generate", "exchange", "update")]
        one_rate, one_best, one_cpu = one_rate or rate, one_best or best, one_cpu or cpu
        cores = ranks * threads
        print(
            f"{ranks:>5}{threads:>9}{rate:>11,.0f}"
            + "".join(f"{1e3 * value:>8.1f} ms" for value in [*parts, cpu])
            + f"{jobs[0]['sent']:>12,}{rate / cores / one_rate:>12.1%}"
            + f"{best / cores / one_best:>9.1%}{one_cpu / cpu:>8.1%}"
        )
    two, host = measured[2, 1], {part: statistics.median(one[part] for one in measured[1, 2]) for part in PARTS}
    chosen = ["sharded" if one["sharded"] else "replicated" for one in two]
    print(f"Updates that two ranks chose: {', '.join(chosen)}.")
    print(f"A gather of 64 bytes takes two ranks {1e3 * statistics.median(one['gather'] for one in two):.2f} ms.")

    config = Config(n_layer=args.layers, n_embd=args.width)
    costs = Costs(
        member_token=host["generate"] / tokens,
        pair=host["update"] / (args.population / 2),
        step=host["step"],
        parameters=sum(int(np.prod(leaf.stacked_shape)) for leaf in leaves(config)),
        tokens=args.tokens,
        bandwidth=args.bandwidth / 8,
        latency=args.latency,
    )
    print(
        f"\nModel: population {args.model_population:,}. A host scores {1 / costs.member_token:,.0f} tokens/s, sums "
        f"the votes of {1 / costs.pair:,.0f} pairs/s\nand moves {costs.parameters:,} parameters in "
        f"{1e3 * costs.step:.1f} ms; its link has {args.bandwidth / 1e9:g} Gbit/s and {1e6 * args.latency:g} µs."
    )
    print(
        f"{'hosts':>6}  {'update':<11}{'generate':>10}{'fitness':>10}{'votes':>10}{'sum':>10}{'epoch':>10}"
        f"{'sent/host':>12}{'efficiency':>12}   faster from population"
    )
    model = []
    for hosts in args.hosts:
        for sharded in (False, True):
            parts = costs.epoch(hosts, args.model_population, sharded)
            model.append({"hosts": hosts, "sharded": sharded, **parts, "crossover": costs.crossover(hosts)})
            seconds = "".join(f"{parts[name]:>8.2f} s" for name in ("generate", "fitness", "votes", "sum", "seconds"))
            print(
                f"{hosts:>6}  {'sharded' if sharded else 'replicated':<11}{seconds}{parts['bytes'] / 1e6:>9.2f} MB"
                f"{parts['efficiency']:>12.1%}" + (f"   {costs.crossover(hosts):,.0f}" if sharded else "")
            )
    if args.json:
        jobs_of = {f"{ranks} x {threads}": jobs for (ranks, threads), jobs in measured.items()}
        report = {"measured": jobs_of, "host": host, "model": model}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
