"""A job of several processes computes the bits of one process, even if ranks die, stop, hang or differ."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, init_params
from nanoegg_mlx.core import update as evolve
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.durable import Lock
from nanoegg_mlx.store.fitness_log import read_fitness_log
from nanoegg_mlx.store.metrics import read_metrics
from tests.jobs import TRAIN, Job, free_ports
from tests.tiny import branch, train, work_in
from tests.traces import ENGINES, pseudo_text
from tests.training.test_run import TIMES

# Seven lanes and five rows of validation: uneven for most numbers of ranks; with seven ranks, some have no row.
CONFIG = Config(
    n_layer=1, n_embd=8, population=28, group_size=4, tokens_per_update=6, train="train.npy", valid="valid.npy",
    checkpoints="runs", name="t", num_epochs=5, validate_every=3, validation_batch_size=5, checkpoint_every=3,
    check_every=2, engine=ENGINES[-1],
)  # fmt: skip
FOLDER = Path("runs/t")
VARIANTS = {
    f"{engine}-{name}": CONFIG.replace(name=f"{engine}-{name}", engine=engine, **changes)
    for engine in ENGINES
    for name, changes in {
        "signs": {"update": "replicated"},
        "shares": {"update": "sharded", "num_perturbations": 12, "noise_reuse": 2, "n_layer": 2},
        "normalised": {"update": "auto", "fast_fitness": False, "rank": 2},
        "sparse": {"update": "auto", "sparse_embedding": True, "num_perturbations": 12},
    }.items()
}
VARIANTS["nudged"] = CONFIG.replace(name="nudged", perturb="activations", n_layer=2, decorrelate=True)
VARIANTS["nudged-head"] = CONFIG.replace(name="nudged-head", perturb="activations", head_rule="perturb", engine="mlx")
VARIANTS["lanes"] = VARIANTS["nudged"].replace(name="lanes", antithetic=False, average=True, num_epochs=18)
VARIANTS["lanes-head"] = VARIANTS["nudged-head"].replace(name="lanes-head", antithetic=False)
# Votes that might need int64.
VARIANTS["wide"] = CONFIG.replace(name="wide", update="sharded", fast_fitness=False, rank=170)
assert evolve.vote_dtype(VARIANTS["wide"]) == mx.int64
ALL = """
from pathlib import Path
import mlx.core as mx
from nanoegg_mlx import Config
from nanoegg_mlx.ranks import partition, world
from nanoegg_mlx.ranks.join import join
from tests.tiny import train
world._PIECE, partition._PIECE = 9000, 300  # so that all data is sent in pieces
world = join()
print("threads", world.threads(0), world.threads(3))
total = world.sum(mx.array([2**40 + world.rank], mx.int64), "the sum").item()
assert total == sum(2**40 + rank for rank in range(world.size))
for path in sorted(Path().glob("*.toml")):
    train(Config.from_toml(path), world)
"""


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a small corpus, to work in."""
    return work_in(tmp_path, monkeypatch)


def outcome(folder: Path) -> dict[str, Any]:
    """All results of a run except times and traffic, to the last bit."""
    aside = {*TIMES, "wire_bytes", "sharded"}
    opened = checkpoint.load(folder, pytest.fail)
    return {
        "checkpoints": {
            f"{path.name}/{name}": (path / name).read_bytes()
            for path in checkpoint.folders(folder)
            for name in ("model.safetensors", "states.safetensors")
        },
        "best": (folder / "best").resolve().name,
        "tokens": opened.info["tokens"],
        "metrics": [
            {key: line[key] for key in line if key not in aside} for line in read_metrics(folder / "metrics.jsonl")
        ],
        "votes": [(vote.epoch, vote.fitness.tobytes()) for vote in read_fitness_log(folder / "votes.bin")],
    }


def untouched(config: Config) -> dict[str, Any]:
    """The outcome of one undisturbed process."""
    train(config.replace(checkpoints="peace"))
    return outcome(Path("peace") / config.name)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The outcomes of the variants in one process."""
    folder = tmp_path_factory.mktemp("alone")
    np.save(folder / "train.npy", pseudo_text(3000, 1))
    np.save(folder / "valid.npy", pseudo_text(400, 2))
    places = {"train": f"{folder}/train.npy", "valid": f"{folder}/valid.npy", "checkpoints": f"{folder}/runs"}
    outcomes = {}
    for name, config in VARIANTS.items():
        train(config.replace(**places))
        outcomes[name] = outcome(folder / "runs" / name)
    return outcomes


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_any_number_of_ranks_gives_the_same_bits(ranks: int, expected: dict[str, dict[str, Any]]) -> None:
    # Many processes on few cores are slow, so they get one variant of each engine.
    some = {3: ("signs", "normalised"), 4: ("normalised", "shares"), 7: ("shares", "signs")}
    names = (
        [*map("-".join, zip(ENGINES, some[ranks], strict=False)), "nudged", "lanes", f"{ENGINES[-1]}-sparse"]
        if ranks in some
        else VARIANTS
    )
    variants = {name: VARIANTS[name] for name in names}
    for name, config in variants.items():
        Path(f"{name}.toml").write_text(config.to_toml())
    job = Job(ranks, "-c", ALL)
    assert job.wait(120) == [0] * ranks
    for name, config in variants.items():
        assert outcome(Path("runs") / name) == expected[name], name
        lines = read_metrics(Path("runs") / name / "metrics.jsonl")[1:]
        assert all(line["wire_bytes"] > 0 for line in lines)
        if config.perturb == "activations":
            # Each rank sends the sums of all votes in int64, by the ring algorithm.
            assert all(line["wire_bytes"] > 8 * 2 * (ranks - 1) / ranks * moved_entries(config) for line in lines)
        elif config.update == "auto":
            assert [line["sharded"] for line in lines[:4]] == [False, True, False, True]
        else:
            assert {line["sharded"] for line in lines} == {config.update == "sharded"}
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for rank in range(ranks):
        assert job.output(rank).splitlines()[0] == f"threads {max(usable // ranks, 1)} 3"


def moved_entries(config: Config) -> int:
    """Entries of the leaves that nudged activations move."""
    return sum(value.size for name, value in init_params(config).items() if "ln" not in name)


def launch(ranks: int, *options: str) -> subprocess.Popen[str]:
    """`mlx.launch` of `nanoegg train` on this machine."""
    script = [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]
    command = [*script, "-n", str(ranks), "--backend", "ring", "-p", str(free_ports(1)[0]), "--"]
    return subprocess.Popen(
        [*command, sys.executable, *TRAIN, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_mlx_launch(expected: dict[str, dict[str, Any]]) -> None:
    name = f"{ENGINES[-1]}-signs"
    Path("c.toml").write_text(VARIANTS[name].to_toml())
    for ranks in (1, 4):
        with launch(ranks, "--config=c.toml") as launcher:
            output, _ = launcher.communicate(timeout=60)
        assert "5 epochs in" in output and "WARN" not in output, output
        assert output.count("epoch 5: validation") == 1  # only rank 0 prints it
        assert outcome(Path("runs") / name) == expected[name]
        shutil.rmtree("runs")


def test_a_launcher_that_is_ended() -> None:
    """mlx.launch dies of SIGTERM without a signal to the ranks. Their output then has no reader: they end in order."""
    Path("c.toml").write_text(CONFIG.replace(num_epochs=10**6, checkpoint_every=0, validate_every=0).to_toml())
    with launch(2, "--config=c.toml") as launcher:
        assert launcher.stdout is not None
        while "epoch 1:" not in (line := launcher.stdout.readline()):
            assert line, "the job has ended"
        launcher.terminate()
    deadline = time.monotonic() + 30
    while not checkpoint.folders(FOLDER)[1:] and time.monotonic() < deadline:
        time.sleep(0.05)
    while True:
        try:
            Lock(FOLDER).release()  # after rank 0 has released it
            break
        except InputError:
            assert time.monotonic() < deadline
    done = checkpoint.load(FOLDER, pytest.fail).epoch
    assert done >= 3 and read_metrics(FOLDER / "metrics.jsonl")[-1]["epoch"] == done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_any_rank_ends_all_at_one_epoch(number: signal.Signals) -> None:
    config = CONFIG.replace(num_epochs=10**6, checkpoint_every=0, validate_every=5)
    Path("c.toml").write_text(config.to_toml())
    job = Job(3, *TRAIN, "--config=c.toml")
    job.wait_for("epoch 5:")
    job.ranks[2].send_signal(number)
    assert job.wait() == [130 if number == signal.SIGINT else 0, 0, 0]
    assert f"Stopped by {number.name} after epoch" in job.output(0)
    done = checkpoint.load(FOLDER, pytest.fail).epoch
    assert done >= 5 and read_metrics(FOLDER / "metrics.jsonl")[-1]["epoch"] == done
    job = Job(2, *TRAIN, f"--resume={FOLDER}", f"--num-epochs={done + 3}")
    assert job.wait() == [0, 0]
    stopped, expected = outcome(FOLDER), untouched(config.replace(num_epochs=done + 3))
    assert expected["checkpoints"].items() <= stopped["checkpoints"].items()
    assert all(stopped[key] == expected[key] for key in ("tokens", "metrics", "votes"))


@pytest.mark.parametrize("config", [CONFIG, VARIANTS["lanes"].replace(name="t")], ids=["weights", "lanes"])
def test_killed_ranks(config: Config, corpus: Path) -> None:
    """SIGKILL of a random rank at a random moment: the job ends itself, and continues with another number of ranks."""
    config = config.replace(num_epochs=90, checkpoint_every=4, validate_every=10, keep=2)
    Path("c.toml").write_text(config.to_toml())
    expected = untouched(config)
    generator = random.Random(1)
    killed = 0
    for number, ranks in enumerate([3, 2, 4]):
        job = Job(ranks, *TRAIN, f"--resume={FOLDER}" if number else "--config=c.toml")
        job.wait_for("runs/t: ")
        time.sleep(generator.uniform(0, 0.3))
        victim = generator.randrange(ranks)
        job.ranks[victim].kill()
        codes = job.wait(30)
        if codes[victim] == -signal.SIGKILL:  # unless the job has finished before
            killed += 1
            others = [code for rank, code in enumerate(codes) if rank != victim]
            # A rank that has finished the last epoch waits for no other.
            assert set(others) <= {0, 3} and (3 in others or codes[0] == 0)
            for rank, code in enumerate(codes):
                assert code != 3 or lost_a_rank(job.output(rank), rank, ranks)
                assert "Traceback" not in job.output(rank)
    assert killed >= 1
    assert Job(2, *TRAIN, f"--resume={FOLDER}").wait() == [0, 0]
    assert outcome(FOLDER) == expected


def lost_a_rank(output: str, rank: int, ranks: int) -> bool:
    """Whether the output has the error of a connection that is lost, or that delivered damaged data when it was."""
    start = f"error: Rank {rank} of {ranks} "
    return f"{start}waited for " in output or f"{start}received damaged data from " in output


def test_a_rank_that_hangs() -> None:
    Path("c.toml").write_text(CONFIG.replace(num_epochs=10**6, validate_every=5, timeout=1.0).to_toml())
    job = Job(3, *TRAIN, "--config=c.toml")
    job.wait_for("epoch 5:")
    job.ranks[1].send_signal(signal.SIGSTOP)
    assert [job.ranks[rank].wait(30) for rank in (0, 2)] == [3, 3]
    job.end()
    waited = [f"error: rank {rank} of 3 has waited " in job.output(rank) for rank in (0, 2)]
    # A rank that is slightly later may get a connection error when the first one exits.
    lost = [lost_a_rank(job.output(rank), rank, 3) for rank in (0, 2)]
    assert any(waited) and all(map(max, waited, lost))
    assert "from ranks 1, 2." in job.output(0) or "from ranks 0, 1." in job.output(2)
    assert Job(2, *TRAIN, f"--resume={FOLDER}", "--num-epochs=10").wait() == [0, 0]


def test_a_rank_that_never_starts() -> None:
    Path("c.toml").write_text(CONFIG.to_toml())
    job = Job(2, *TRAIN, "--config=c.toml", "--timeout=1.5")
    job.ranks[1].kill()
    assert job.wait(30) == [1, -signal.SIGKILL]
    assert "wait_for_the_other_ranks_to_start" in job.output(0)


IN_PIECES = """
import sys
from nanoegg_mlx import cli
from nanoegg_mlx.ranks import partition, world
world._PIECE, partition._PIECE = 9000, 300
sys.exit(cli.main())
"""


def test_hosts_that_share_nothing() -> None:
    """Only rank 0 can read the run; the others have their own copies of the caches, and half of them another engine."""
    config = CONFIG.replace(num_epochs=6, update="sharded", n_layer=2)
    train(config.replace(num_epochs=3))
    expected = untouched(config)
    for name in ("train.npy", "valid.npy"):
        shutil.copy(name, f"other-{name}")

    def own(rank: int) -> list[str]:
        if rank == 0:
            return [f"--resume={FOLDER}"]
        return ["--resume=elsewhere", "--train=other-train.npy", "--valid=other-valid.npy", f"--engine={ENGINES[0]}"]

    job = Job(3, "-c", IN_PIECES, "train", "--num-epochs=6", own=own)
    assert job.wait() == [0, 0, 0]
    result = outcome(FOLDER)
    assert not Path("elsewhere").exists() and checkpoint.load(FOLDER, pytest.fail).config.train == "train.npy"
    for line in [*result["metrics"], *expected["metrics"]]:  # float64: its last bits depend on the engine
        line["validation_exact"] = line["validation_exact"] and round(line["validation_exact"], 10)
    assert result == expected


CORRUPT = """
import sys
import mlx.core as mx, numpy as np
from nanoegg_mlx import cli
from nanoegg_mlx.training.trainer import Trainer
accept = Trainer.accept
def corrupted(trainer, epoch):
    accept(trainer, epoch)
    if trainer.epoch == 5 and trainer.world.rank == 1:
        emb = np.array(trainer.params["emb"])
        emb[200, 3] ^= 1
        trainer.params = {**trainer.params, "emb": mx.array(emb)}
Trainer.accept = corrupted
sys.exit(cli.main())
"""


@pytest.mark.parametrize(("check_every", "checkpoint_every", "found"), [(2, 4, 6), (0, 4, 8)])
def test_a_rank_that_diverges(check_every: int, checkpoint_every: int, found: int) -> None:
    """One bit flips on rank 1 after epoch 5: found at the next check, at the latest before a checkpoint."""
    config = CONFIG.replace(num_epochs=10, check_every=check_every, checkpoint_every=checkpoint_every)
    Path("c.toml").write_text(config.to_toml())
    expected = untouched(config)
    job = Job(3, "-c", CORRUPT, "train", "--config=c.toml")
    assert job.wait() == [3, 3, 3]
    for rank in range(3):
        assert f"rank 1 of 3 differs from the others in the parameters of epoch {found}." in job.output(rank)
    assert checkpoint.load(FOLDER, pytest.fail).epoch == 4
    assert Job(2, *TRAIN, f"--resume={FOLDER}").wait() == [0, 0]
    assert outcome(FOLDER) == expected


@pytest.mark.parametrize(
    ("options", "own", "reporter", "message"),
    [
        ([], "--alpha=2", 0, "Rank 1 differs from rank 0 in its configuration: alpha is 2.0 (rank 0: 4.0)"),
        ([], "--train=other.npy", 0, "Rank 1 differs from rank 0 in the content of its caches: train is "),
        ([], "--train=none.npy", 1, "Rank 1: The token cache none.npy ("),
        (
            ["--population=4"],
            "--population=4",
            0,
            "The number of processes is 2; it must be at most 1, ",
        ),
        (["--resume=nowhere"], "--engine=mlx", 0, "The folder nowhere is not a run's; to be resumed it must"),
    ],
)
def test_refusals(options: list[str], own: str, reporter: int, message: str) -> None:
    """One rank reports the error, all end with code 2, and nothing is written."""
    np.save("other.npy", pseudo_text(3000, 3))
    Path("c.toml").write_text(CONFIG.to_toml())
    job = Job(2, *TRAIN, *([] if "--resume=nowhere" in options else ["--config=c.toml"]), *options,
              own=lambda rank: [own] if rank == 1 else [])  # fmt: skip
    assert job.wait() == [2, 2]
    assert f"error: {message}" in job.output(reporter), job.output(0) + job.output(1)
    assert job.output(1 - reporter) == "" and not Path("runs").exists()


def test_branches(corpus: Path) -> None:
    """A job branches to the same run as one process; only rank 0 needs to read the source."""
    config = CONFIG.replace(num_epochs=6)
    train(config)
    branch(FOLDER, 3, {"name": "alone"})
    branch(FOLDER, 2, {"name": "votes"})
    for name, source in (("alone", "runs/t@3"), ("votes", "runs/t@2")):
        job = Job(2, *TRAIN, f"--name={name}",
                  own=lambda rank, source=source: [f"--branch={source if rank == 0 else 'elsewhere@1'}"])  # fmt: skip
        assert job.wait() == [0, 0]
        assert outcome(Path(f"runs/{name}-2")) == outcome(Path(f"runs/{name}"))
