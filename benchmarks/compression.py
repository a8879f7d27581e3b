"""Size and speed of `nanoegg compress` beside other compressors, on the same files.

    python benchmarks/compression.py CHECKPOINT FILE... [--json FILE]

A .npy file is a token cache, whose documents are joined; any other file is read as it is. For each file: bytes, bits
per byte, the size with the model counted, and MB of text per second of processor time, the best of three runs on one
thread. Every result is decompressed and compared. PPMd needs the package `pyppmd`. zpaq -m5, which mixes contexts,
needs a program `zpaq` on the path (Debian's package). Without them their rows are missing.
"""

import argparse
import bz2
import gzip
import json
import lzma
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanoegg_mlx.engines.machine import machine
from nanoegg_mlx.measure.compress import compress, decompress
from nanoegg_mlx.store import checkpoint

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Coder = Callable[[bytes], bytes]
RUNS = 3


def read(path: Path) -> bytes:
    """A file's bytes; of a token cache all documents without the 0 bytes between them."""
    if path.suffix == ".npy":
        return np.load(path).tobytes().replace(b"\0", b"")
    return path.read_bytes()


def others() -> dict[str, tuple[Coder, Coder]]:
    """Compressors and decompressors by name, the available ones."""
    found: dict[str, tuple[Coder, Coder]] = {
        "gzip -9": (partial(gzip.compress, compresslevel=9), gzip.decompress),
        "bzip2 -9": (partial(bz2.compress, compresslevel=9), bz2.decompress),
        "xz -9": (partial(lzma.compress, preset=9), lzma.decompress),
        "zstd -19": (partial(zstd.compress, level=19), zstd.decompress),
    }
    try:
        import pyppmd
    except ImportError:
        pass
    else:
        how = {"max_order": 8, "mem_size": 256 << 20}
        found["PPMd, order 8"] = (partial(pyppmd.compress, **how), partial(pyppmd.decompress, **how))
    if shutil.which("zpaq"):
        found["zpaq -m5"] = (zpaq, unzpaq)
    return found


def zpaq(text: bytes) -> bytes:
    """The archive of one file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "t").write_bytes(text)
        subprocess.run(["zpaq", "add", "a.zpaq", "t", "-m5", "-t1"], cwd=folder, check=True, capture_output=True)
        return Path(folder, "a.zpaq").read_bytes()


def unzpaq(packed: bytes) -> bytes:
    """The file of an archive."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.zpaq").write_bytes(packed)
        subprocess.run(["zpaq", "extract", "a.zpaq", "-t1"], cwd=folder, check=True, capture_output=True)
        return Path(folder, "t").read_bytes()


def seconds() -> float:
    """Processor time of this process and of the programs that it ran."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(code: Coder, data: bytes) -> tuple[bytes, float]:
    """The result, and the least time of RUNS runs."""
    times = []
    for _ in range(RUNS):
        started = seconds()
        result = code(data)
        times.append(seconds() - started)
    return result, max(min(times), 1e-6)


def measure(name: str, coder: tuple[Coder, Coder], text: bytes, model: int = 0) -> dict[str, Any]:
    """The figures of a compressor on a text. `model`: bytes that its decompressor needs besides."""
    packed, compress_seconds = timed(coder[0], text)
    again, decompress_seconds = timed(coder[1], packed)
    assert again == text, f"{name} does not give the text back"
    return {
        "compressor": name,
        "bytes": len(packed),
        "bits_per_byte": 8 * len(packed) / len(text),
        "with_model": len(packed) + model,
        "compress_mb_per_second": len(text) / compress_seconds / 1e6,
        "decompress_mb_per_second": len(text) / decompress_seconds / 1e6,
    }


def line(row: dict[str, Any]) -> str:
    """Formats a row of the table."""
    return (
        f"  {row['compressor']:<16}{row['bytes']:>11,}{row['bits_per_byte']:>10.3f}{row['with_model']:>13,}"
        f"{row['compress_mb_per_second']:>12.2f}{row['decompress_mb_per_second']:>12.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    options = parser.parse_args()
    opened = checkpoint.load(options.checkpoint)
    config = opened.config.replace(threads=1)
    model = sum(value.size for value in opened.params.values())
    coders = {
        "nanoegg": (
            lambda text: compress(text, opened.params, config),
            lambda packed: decompress(packed, opened.params, config),
        ),
        **others(),
    }
    print(
        f"{machine()['processor']}; model of {config.n_layer} x {config.n_embd}, epoch {opened.epoch}, {model:,} bytes"
    )
    print(f"  {'':<16}{'bytes':>11}{'bits/byte':>10}{'with model':>13}{'to MB/s':>12}{'from MB/s':>12}")
    rows = []
    for path in options.files:
        text = read(path)
        print(f"{path.name}, {len(text):,} bytes", flush=True)
        for name, coder in coders.items():
            row = measure(name, coder, text, model if name == "nanoegg" else 0)
            rows.append({"file": path.name, "text": len(text), **row})
            print(line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
