"""Speed of text preparation: this package and the plain loop, measured in one run.

`python benchmarks/data_prep.py [--json FILE]` makes a corpus of random documents, measures both programs in
turns and reports medians, in MB of tokens per second:

* convert: an Arrow column in memory to a token array in memory;
* prepare: a Parquet file to a .npy cache on disk. For this package it includes the child process that reads the file,
  the UTF-8 check, SHA-256, the manifest and fsync; the plain side does none of these;
* json: the same from JSON lines.

The plain loop is `np.array([0] + list(text.encode()), dtype=np.uint8)` for each document, then np.concatenate. Both
outputs are compared before the measurement.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_prep.pipeline import prepare
from data_prep.sources import split_files_source
from data_prep.tokens import check_text, encode, text_chunks

SHAPES = {"MiniPile-like": 5900, "paragraphs": 500, "lines": 60}


def make_column(megabytes: float, mean_bytes: int) -> pa.ChunkedArray:
    """Makes documents of exponentially distributed length, 0.3 % of the text not ASCII, in eight chunks."""
    rng = np.random.default_rng(0)
    letters = rng.choice(np.array([*b"etaoin shrdlu\n" * 50, ord("€"), ord("ü")], "<u4"), 1 << 20)
    text = letters.tobytes().decode("utf-32-le")
    count = max(int(megabytes * 1e6 / mean_bytes), 1)
    lengths = np.minimum(rng.exponential(mean_bytes * 0.83, count).astype(int), 1 << 19)
    starts = rng.integers(0, 1 << 19, count)
    documents = [text[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    size = max(count // 8, 1)
    return pa.chunked_array([documents[i : i + size] for i in range(0, count, size)], pa.string())


def convert_plain(column: pa.ChunkedArray) -> np.ndarray:
    """Converts with the plain loop. Returns (bytes + documents,) uint8."""
    documents = column.to_pylist()
    return np.concatenate([np.array([0, *list(d.encode())], dtype=np.uint8) for d in documents])


def convert(column: pa.ChunkedArray) -> np.ndarray:
    """Converts as data_prep does, with its UTF-8 check and count of NULs."""
    encoded = []
    for array in column.chunks:
        for chunk in text_chunks(array):
            check_text(chunk)
            encoded.append(encode(chunk).tokens)
    return np.concatenate(encoded)


def prepare_plain(file: Path, cache: Path) -> None:
    """Writes a Parquet file's text to .npy with the plain loop."""
    np.save(cache, convert_plain(pq.read_table(file, columns=["text"]).column("text")))


def prepare_json_plain(file: Path, cache: Path) -> None:
    """Writes the text of JSON lines to .npy with the plain loop."""
    with open(file, encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]
    np.save(cache, np.concatenate([np.array([0, *list(d.encode())], dtype=np.uint8) for d in documents]))


def alternate(sides: list[Callable[[], object]], repeats: int) -> list[float]:
    """Returns the median seconds of each side, measured in turns."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, times in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def measure(megabytes: float, repeats: int, folder: Path) -> list[dict[str, object]]:
    """Returns one row for each shape of corpus and task: MB/s of both sides, and their ratio."""
    rows: list[dict[str, object]] = []
    for shape, mean_bytes in SHAPES.items():
        column = make_column(megabytes, mean_bytes)
        file = folder / f"{shape}.parquet"
        pq.write_table(pa.table({"text": column}), file)
        source = split_files_source({"train": [file]}, "text")
        lines = folder / f"{shape}.jsonl"
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in column.to_pylist()))
        json_source = split_files_source({"train": [lines]}, "text")

        tokens = convert_plain(column)
        assert np.array_equal(convert(column), tokens)
        prepare(source, folder, "ours")
        prepare_plain(file, folder / "plain.npy")
        assert (folder / "ours_train.npy").read_bytes() == (folder / "plain.npy").read_bytes()

        tasks: dict[str, list[Callable[[], object]]] = {
            "convert": [partial(convert, column), partial(convert_plain, column)],
            "prepare": [
                partial(prepare, source, folder, "ours", force=True),
                partial(prepare_plain, file, folder / "plain.npy"),
            ],
            "json": [
                partial(prepare, json_source, folder, "ours", force=True),
                partial(prepare_json_plain, lines, folder / "plain.npy"),
            ],
        }
        for task, sides in tasks.items():
            ours, plain = (tokens.size / 1e6 / t for t in alternate(sides, repeats))
            rows.append(
                {
                    "task": task,
                    "documents": shape,
                    "mean_bytes": round(tokens.size / len(column) - 1),
                    "data_prep_MB_per_s": round(ours, 1),
                    "plain_MB_per_s": round(plain, 1),
                    "ratio": round(ours / plain, 1),
                }
            )
        for path in folder.iterdir():
            path.unlink()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=64, help="size of a corpus (default: 64)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each (default: 5)")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args.megabytes, args.repeats, Path(folder))
    machine = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'task':<8} {'documents':<14} {'mean bytes':>10} {'MB/s':>9} {'plain MB/s':>11} {'ratio':>7}")
    for row in rows:
        task, shape, mean_bytes, ours, plain, ratio = row.values()
        print(f"{task:<8} {shape:<14} {mean_bytes:>10} {ours:>9} {plain:>11} {ratio:>7}")
    if args.json:
        report = {"megabytes": args.megabytes, "repeats": args.repeats, **machine, "results": rows}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
