"""A long run at full speed. Memory must not grow, tokens/s must not drift, metrics and fitness log must be complete.

python benchmarks/soak.py [--minutes 30] [--config FILE] [--json FILE] [-- OPTIONS OF nanoegg train]

Trains in a separate process into a temporary folder and ends it with SIGTERM. Then it reports resident memory and
tokens/s by tenths of the time, checks that metrics.jsonl and votes.bin have every epoch, and compares a replay of
votes.bin with the last checkpoint. The exit code is 1 if a line or an epoch is missing, or the replay differs.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.fitness_log import read_fitness_log
from nanoegg_mlx.store.metrics import Record, read_metrics
from nanoegg_mlx.training.replay import params_at

ROOT = Path(__file__).parents[1]


def soak(folder: Path, minutes: float, options: list[str]) -> Path:
    """Trains for `minutes` and returns the run's folder."""
    command = [sys.executable, "-m", "nanoegg_mlx.cli", "train", *options]
    command += [f"--checkpoints={folder}", "--name=soak", "--num-epochs=1000000000"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process:
        try:
            process.wait(timeout=60 * minutes)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
    if process.returncode:
        sys.exit(f"error: the run ended with code {process.returncode}:\n" + (folder / "log").read_text()[-2000:])
    return folder / "soak"


def tenths(lines: list[Record]) -> list[dict[str, float]]:
    """Returns medians of memory and speed in each tenth of the run's time."""
    first, last = lines[0]["seconds"], lines[-1]["seconds"]
    rows = []
    for tenth in range(10):
        low, high = (first + (last - first) * (tenth + i) / 10 for i in (0, 1))
        part = [line for line in lines if low <= line["seconds"] < high]
        # Wall time between lines, validation and checkpoints included.
        rate = (part[-1]["tokens"] - part[0]["tokens"]) / (part[-1]["seconds"] - part[0]["seconds"])
        rows.append(
            {
                "minute": high / 60,
                "rss_mb": statistics.median(line["rss_mb"] for line in part),
                "tokens_per_second": statistics.median(line["tokens_per_second"] for line in part),
                "tokens_per_second_overall": rate,
            }
        )
    return rows


def complete(run: Path) -> dict[str, Any]:
    """Checks that the run's files are complete and that the replay gives its last checkpoint."""
    opened = checkpoint.load(run)
    lines = read_metrics(run / "metrics.jsonl")
    epochs = [logged.epoch for logged in read_fitness_log(run / "votes.bin")]
    _, params = params_at(run / "votes.bin", opened.epoch)
    return {
        "epochs": opened.epoch,
        "metrics complete": [line["epoch"] for line in lines] == list(range(opened.epoch + 1)),
        "fitness log complete": epochs == list(range(opened.epoch)),
        "replay gives the checkpoint": all(
            np.array_equal(np.array(params[name]), np.array(opened.params[name])) for name in params
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="(default: 30)")
    parser.add_argument("--config", default="configs/quickstart-weights.toml", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("options", nargs="*", help="more options of `nanoegg train`, after --")
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = soak(Path(folder), args.minutes, [f"--config={args.config}", *args.options])
        rows = tenths([line for line in read_metrics(run / "metrics.jsonl") if line["epoch"]])
        about = complete(run)
        sizes = {path.name: path.stat().st_size for path in (run / "votes.bin", run / "metrics.jsonl")}
    print(f"{'minute':>7}{'RSS MB':>9}{'tokens/s':>12}{'overall':>12}")
    for row in rows:
        minute, rss, rate, overall = row.values()
        print(f"{minute:>7.1f}{rss:>9.1f}{rate:>12,.0f}{overall:>12,.0f}")
    for name, value in (about | sizes).items():
        print(f"{name}: {value:,}" if isinstance(value, int) and value is not True else f"{name}: {value}")
    if args.json:
        report = {"tenths": rows, **about, "bytes": sizes, "seconds": time.perf_counter() - started}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(value is not False for value in about.values()) else 1)


if __name__ == "__main__":
    main()
