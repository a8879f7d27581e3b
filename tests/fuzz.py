"""A structure-aware fuzzer of every reader: whatever is in a file, it is read or refused in one sentence.

    python -m tests.fuzz --minutes 60 --jobs 2 -o findings
    python -m tests.fuzz --only votes,model --trials 500

Each trial damages one file of a small workspace (caches, texts of every format, a run with checkpoints) and runs a
command on it in a forked child. A trial is a finding if the child dies of a signal, hangs, prints a traceback, ends
with another exit code than 0 or 2, says more or less than one sentence with exit code 2, or, where a hash protects the
file, succeeds with another result than the whole file's. The damaged file and what was printed are kept in the folder.

Damage knows the file's structure: values of JSON, TOML and of the headers of safetensors and .npy files are replaced by
values at and beyond their limits; lengths in binary files by others; and bytes are flipped, cut, doubled and moved.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from nanoegg_mlx import cli, terminal
from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import model_hash
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.measure import container
from nanoegg_mlx.show import curves
from nanoegg_mlx.store import checkpoint
from tests.damage import damage
from tests.tiny import skilled_checkpoint
from tests.traces import ENGINES, pseudo_text

SECONDS = 60
MEMORY = 8 << 30
TEXT = [f"document {i}: the quick brown fox, {i * i} times" for i in range(60)]


@dataclass(frozen=True)
class Target:
    """A file of the workspace, and what is done with it."""

    file: str
    run: Callable[[], str]
    """Reads the file in the working folder, and returns its result in a form that can be compared."""
    sealed: bool = False
    """A hash protects the file, so a success has the result of the whole file."""
    kind: str = "binary"
    """`json`, `toml`, `safetensors`, `npy` or `binary`: the structure that damage knows."""


def command(*arguments: str, result: str = "") -> Callable[[], str]:
    """Runs a command line; its result is the SHA-256 of the file `result`. Ends the child where the command fails."""

    def run() -> str:
        if code := cli.main(arguments):
            _end(code)
        return hashlib.sha256(Path(result).read_bytes()).hexdigest() if result else ""

    return run


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def read_config() -> str:
    config = Config.from_toml("c.toml")
    Path("again.toml").write_text(config.to_toml(), encoding="utf-8")
    assert Config.from_toml("again.toml") == config, "the config does not survive TOML"
    return ""


def read_curves() -> str:
    curves.open_run(Path("runs/t"))
    return ""


def _resume(run: str) -> tuple[str, ...]:
    return ("train", "--resume", run, "--num-epochs", "13", "--keep", "9")


RESUME = _resume("runs/t")
RESUMED = "runs/t/epoch-00000013/model.safetensors"
LAST = "runs/t/epoch-00000012"
AVERAGED = "runs/averaged/epoch-00000012"


def resealed(name: str, last: str = LAST) -> Callable[[], str]:
    """Reads a checkpoint whose file `name` is damaged but has the right hash: somebody else's program wrote it."""

    def run() -> str:
        about = Path(last, "checkpoint.json")
        try:
            document = json.loads(about.read_bytes())
            if name in document["files"]:
                document["files"][name] = hashlib.sha256(Path(last, name).read_bytes()).hexdigest()
            about.write_text(json.dumps({**document, "sha256": checkpoint._seal(document)}))
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        return command("eval", last)() + command(*_resume(str(Path(last).parent)))()

    return run


def resealed_egg() -> str:
    """Reads a compressed file that is damaged but whose first block has the right checksum and the right model."""
    content = bytearray(Path("a.egg").read_bytes())
    opened = checkpoint.load("m")
    content[:44] = container.MAGIC + b"\1\0\0\0" + model_hash(opened.params, opened.config)
    if len(content) > 56:
        end = 56 + int.from_bytes(content[52:56], "little")
        content[end : end + 4] = zlib.crc32(content[44:end]).to_bytes(4, "little")
    Path("a.egg").write_bytes(content)
    return command("decompress", "a.egg", "--model", "m", "-o", "a.out")()


def decoded_lane() -> str:
    """Decodes the file's bytes as the streams of three lanes: any bytes are a stream, and all engines agree."""
    content = Path("a.egg").read_bytes()
    opened = checkpoint.load("m")
    streams = [content[:99], content[99:], content]
    texts = [
        make_engine(opened.config.replace(engine=engine)).decode(opened.params, streams, [20, 21, 20])
        for engine in ENGINES
    ]
    assert texts[0] == texts[-1] and [len(text) for text in texts[0]] == [20, 21, 20]
    return ""


def _prepare(file: str) -> Callable[[], str]:
    return command("prepare", "--train", file, "--out", "out", "--quiet", result="out/local_train.npy")


TARGETS = {
    "config": Target("c.toml", read_config, kind="toml"),
    "run_config": Target("runs/t/config.toml", command(*RESUME, result=RESUMED), sealed=True, kind="toml"),
    "checkpoint": Target(f"{LAST}/checkpoint.json", command(*RESUME, result=RESUMED), sealed=True, kind="json"),
    "checkpoint_config": Target(f"{LAST}/config.toml", command(*RESUME, result=RESUMED), sealed=True, kind="toml"),
    "model": Target(f"{LAST}/model.safetensors", command("eval", LAST), sealed=True, kind="safetensors"),
    "model_resumed": Target(
        f"{LAST}/model.safetensors", command(*RESUME, result=RESUMED), sealed=True, kind="safetensors"
    ),
    "states": Target(
        f"{LAST}/states.safetensors", command(*RESUME, result=RESUMED), sealed=True, kind="safetensors"
    ),
    **{
        f"resealed_{name.partition('.')[0]}": Target(f"{LAST}/{name}", resealed(name), kind=name.partition(".")[2])
        for name in ("checkpoint.json", *checkpoint.FILES)
    },
    "resealed_averages": Target(
        f"{AVERAGED}/states.safetensors", resealed("states.safetensors", AVERAGED), kind="safetensors"
    ),
    "votes": Target(
        "runs/t/votes.bin",
        command("replay", "runs/t", "--epoch", "12", "-o", "m.safetensors", result="m.safetensors"),
        sealed=True,
    ),
    "votes_resumed": Target("runs/t/votes.bin", command(*RESUME, result=RESUMED), sealed=True),
    "metrics": Target("runs/t/metrics.jsonl", read_curves, kind="json"),
    "metrics_resumed": Target("runs/t/metrics.jsonl", command(*RESUME, result=RESUMED), sealed=True, kind="json"),
    "compressed": Target(
        "a.egg", command("decompress", "a.egg", "--model", "m", "-o", "a.out", result="a.out"), sealed=True
    ),
    "compressed_resealed": Target("a.egg", resealed_egg),
    "compressed_stream": Target("a.egg", decoded_lane),
    "exported": Target("hub/config.json", command("eval", "hub", "valid.npy"), kind="json"),
    "exported_model": Target("hub/model.safetensors", command("eval", "hub", "valid.npy"), kind="safetensors"),
    "cache": Target("valid.npy", command("eval", LAST, "valid.npy", "--baselines"), kind="npy"),
    "manifest": Target("set/local_manifest.json", command("prepare", "--check", "--name", "local", "--out", "set"),
                       kind="json"),
    "checked_cache": Target(
        "set/local_train.npy",
        command("prepare", "--check", "--name", "local", "--out", "set", result="set/local_train.npy"),
        sealed=True, kind="npy",
    ),
    "txt": Target("a.txt", _prepare("a.txt")),
    "jsonl": Target("a.jsonl", _prepare("a.jsonl"), kind="json"),
    "gz": Target("a.jsonl.gz", _prepare("a.jsonl.gz"), sealed=True),
    "zst": Target("a.jsonl.zst", _prepare("a.jsonl.zst"), sealed=True),
    "parquet": Target("a.parquet", _prepare("a.parquet")),
    "parquet_nested": Target("b.parquet", command(
        "prepare", "--train", "b.parquet", "--column", "a.b", "--out", "out", "--quiet")),
    "arrow": Target("a.arrow", _prepare("a.arrow")),
    "arrow_stream": Target("b.arrow", _prepare("b.arrow")),
}  # fmt: skip


def make_workspace(folder: Path) -> None:
    """Writes the whole files that the targets damage."""
    os.chdir(folder)
    text = bytes(pseudo_text(500, 3))
    os.rename(skilled_checkpoint(folder, text, engine="auto", threads=1), "m")
    Path("a.raw").write_bytes(text)
    assert cli.main(["compress", "m", "a.raw", "--lanes", "3", "-o", "a.egg"]) == 0
    np.save("train.npy", pseudo_text(3000, 1))
    np.save("valid.npy", pseudo_text(400, 2))
    config = Config(
        n_layer=1, n_embd=8, population=16, tokens_per_update=6, train="train.npy", valid="valid.npy",
        checkpoints="runs", name="t", num_epochs=12, validate_every=4, validation_batch_size=8, checkpoint_every=4,
        threads=1,
    )  # fmt: skip
    Path("c.toml").write_text(config.to_toml())
    assert cli.main(["train", "--config", "c.toml"]) == 0
    averaged = ["--name=averaged", "--perturb=activations", "--average"]
    assert cli.main(["train", "--config", "c.toml", *averaged]) == 0
    assert cli.main(["export", "runs/t", "--hf-folder", "hub"]) == 0
    rows = b"".join(orjson.dumps({"id": i, "text": text}) + b"\n" for i, text in enumerate(TEXT))
    Path("a.jsonl").write_bytes(rows)
    Path("a.jsonl.gz").write_bytes(gzip.compress(rows, mtime=0))
    Path("a.txt").write_text("\n".join(TEXT))
    Path("a.jsonl.zst").write_bytes(_zstd(rows))
    table = pa.table({"id": range(60), "text": TEXT, "a": [{"b": text, "c": 1} for text in TEXT]})
    pq.write_table(table.select(["id", "text"]), "a.parquet", row_group_size=20, compression="snappy")
    pq.write_table(table, "b.parquet", data_page_version="2.0", compression="zstd", write_page_index=True)
    dictionary = table.set_column(1, "text", table["text"].dictionary_encode()).select(["id", "text"])
    with pa.ipc.new_file("a.arrow", dictionary.schema) as file:
        file.write_table(dictionary)
    with pa.ipc.new_stream("b.arrow", table.schema) as stream:
        stream.write_table(table, 20)
    assert cli.main(["prepare", "--train", "a.jsonl", "--out", "set"]) == 0


def _zstd(content: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int
    output: str
    result: str

    def fault(self, target: Target, whole: str) -> str | None:
        """What is wrong with it, in words."""
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            return "hangs" if number == signal.SIGALRM else f"dies of {signal.Signals(number).name}"
        code = os.waitstatus_to_exitcode(self.status)
        lines = [line for line in self.output.splitlines() if line.startswith("error: ")]
        if "Traceback" in self.output or "Error:" in self.output or "terminate called" in self.output:
            return "traceback"
        if code not in (0, 2):
            return f"exit code {code}"
        if code == 2 and (len(lines) != 1 or not lines[0].endswith(".")):
            return f"exit code 2 with {len(lines)} sentences"
        if code == 0 and target.sealed and self.result != whole:
            return "succeeds with another result"
        return None


def execute(target: Target, folder: Path) -> Ended:
    """Runs the target in a forked child whose working folder is `folder`."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as result:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1)  # noqa: SIM115
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(SECONDS)
                os.chdir(folder)
                code = terminal.exit_code(lambda: (result.write(target.run().encode()), result.flush(), 0)[-1])
                sys.stdout.flush()
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (output, result):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Ended(status, *texts)


class Fuzzer:
    """Trials on copies of one workspace. Makes no thread, since it forks."""

    def __init__(self, folder: Path, findings: Path | None = None) -> None:
        self._folder, self._findings = folder, findings
        self._whole = folder / "whole"
        self._whole.mkdir(parents=True)
        made = execute(Target("", lambda: make_workspace(self._whole) or ""), self._whole)
        assert made.status == 0, made.output
        self._results: dict[str, str] = {}

    def _run(self, target: Target, content: bytes | None) -> Ended:
        trial = self._folder / "trial"
        shutil.copytree(self._whole, trial, symlinks=True)
        try:
            if content is not None:
                (trial / target.file).write_bytes(content)
            return execute(target, trial)
        finally:
            shutil.rmtree(trial)

    def trial(self, name: str, seed: int) -> str | None:
        """Runs one trial, a function of its seed. Returns the fault, or None."""
        target = TARGETS[name]
        if name not in self._results:
            whole = self._run(target, None)
            assert whole.status == 0, f"{name}: {whole.output}"
            self._results[name] = whole.result
        content = damage((self._whole / target.file).read_bytes(), target.kind, Random(f"{name} {seed}"))
        ended = self._run(target, content)
        fault = ended.fault(target, self._results[name])
        if fault and self._findings:
            self._findings.mkdir(parents=True, exist_ok=True)
            (self._findings / f"{name}-{seed}").write_bytes(content)
            (self._findings / f"{name}-{seed}.log").write_text(f"{fault}\n{ended.output}")
        return fault


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="(default: 60)")
    parser.add_argument("--trials", type=int, default=10**9, help="of each target, at most")
    parser.add_argument("--first", type=int, default=0, help="seed of the first trial (default: 0)")
    parser.add_argument("--only", default=",".join(TARGETS), help="(default: all)")
    parser.add_argument("-o", "--output", type=Path, default=Path("findings"), help="folder (default: findings)")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    names, faults, trials = options.only.split(","), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder) / "w", options.output.resolve())
        for seed in range(options.first, options.first + options.trials):
            if time.monotonic() > ends:
                break
            for name in names:
                trials += 1
                if fault := fuzzer.trial(name, seed):
                    faults += 1
                    print(f"{name} {seed}: {fault}", flush=True)
    print(f"{trials} trials, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
