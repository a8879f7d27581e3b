"""A corpus of 384 MB is prepared in a fraction of that memory, from every file format."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MEGABYTES = 384
BLOCK = 4 << 20
PROGRAM = """
import resource
import sys
import data_prep.formats
from data_prep.__main__ import main
from pathlib import Path

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024

before = peak()
assert main(sys.argv[1:]) == 0
# A child process reads tables; its peak includes what it shares with this one.
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
print(max(peak(), child) - before)
"""


def write_corpus(path: Path) -> None:
    """Writes MEGABYTES of documents of 4 kB, in bounded memory."""
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, BLOCK, dtype=np.uint8)
    offsets = np.arange(0, BLOCK + 1, 4096, dtype=np.int32)
    column = pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(letters)])
    batch = pa.record_batch({"text": column})
    count = (MEGABYTES << 20) // BLOCK
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, batch.schema, use_dictionary=False) as writer:
            writer.write_table(pa.Table.from_batches([batch] * count), row_group_size=1 << 30)
    elif path.suffix == ".arrow":
        whole = pa.Table.from_batches([batch] * count).combine_chunks()
        with pa.ipc.new_file(path, batch.schema) as writer:
            writer.write_table(whole)
    elif path.suffix == ".jsonl":
        lines = "".join(json.dumps({"text": text}) + "\n" for text in column.to_pylist()).encode()
        with open(path, "wb") as file:
            file.writelines([lines] * count)
    else:
        with open(path, "wb") as file:
            file.writelines([letters.tobytes()] * count)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads VmHWM from /proc")
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.txt"])
def test_peak_memory(tmp_path, start, name):
    write_corpus(tmp_path / name)
    command = ["--train", tmp_path / name, "--out", tmp_path / "out", "--quiet"]
    out, err = start("-c", PROGRAM, *command).communicate(timeout=120)
    assert err == ""
    size = (tmp_path / "out" / "local_train.npy").stat().st_size
    for path in (tmp_path / name, tmp_path / "out" / "local_train.npy"):
        path.unlink()
    assert size > MEGABYTES << 20
    assert int(out) < MEGABYTES // 2, f"{name}: grew by {out.strip()} MB"
