"""Exported models for tests: random parameters that reach every case, compilers, and a program that shows all results.

python -m tests.measure.c_models             every width from 1 to 130 under the sanitizers: 3 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from nanoegg_mlx import Config
from nanoegg_mlx.core.params import leaves
from nanoegg_mlx.measure.export_c import c_source
from tests import compressed, oracle

WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wmissing-prototypes", "-Werror"]
SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# `show logits`: the logits of each byte of standard input; `show coded`: the stream of records of 256 logits and a
# byte; `show ties`: which figures halfway round up; other arguments: the program itself.
SHOW = r"""
#define main program
int main(int count, char **arguments);
#define EGG_MAIN
#include "model.c"
#undef main
static void write_byte(void *to, uint8_t byte) { fputc(byte, to); }
int main(int count, char **arguments) {
  int8_t logits[256];
  if (count == 2 && strcmp(arguments[1], "logits") == 0) {
    egg_state state;
    for (int c; (c = getchar()) != EOF;) {
      egg_step(&state, (uint8_t)c, logits);
      fwrite(logits, 1, 256, stdout);
    }
    return 0;
  }
  if (count == 2 && strcmp(arguments[1], "coded") == 0) {
    egg_encoder encoder;
    egg_encoder_start(&encoder, write_byte, stdout);
    while (fread(logits, 1, 256, stdin) == 256) egg_encode(&encoder, logits, (uint8_t)getchar());
    egg_encoder_end(&encoder);
    return 0;
  }
  if (count == 2 && strcmp(arguments[1], "ties") == 0) {
    for (uint64_t n = 0; n < 200000; n++) putchar(rounds_up(n));
    return 0;
  }
  return program(count, arguments);
}
"""


@dataclass(frozen=True)
class Model:
    """Parameters in both forms, and their config."""

    config: Config
    params: dict[str, mx.array]
    arrays: oracle.Params

    def source(self) -> str:
        return c_source(self.params, self.config, "test: */ ??/ é")


def random_model(n_layer: int, n_embd: int, seed: int = 0) -> Model:
    """A model with entries of all sizes: saturated rows, rows of zeros (norm's divisor is then 0), weights of 0."""
    random = np.random.default_rng([seed, n_layer, n_embd])
    config = Config(n_layer=n_layer, n_embd=n_embd, population=2)
    arrays = {}
    for leaf in leaves(config):
        values = np.clip(np.rint(random.normal(0, 24, leaf.stacked_shape)), -127, 127)
        rows = random.random((*leaf.stacked_shape[:-1], 1))
        values = np.where(rows < 0.1, np.where(values < 0, -127, 127), np.where(rows > 0.93, 0, values))
        if leaf.name == "emb":
            values[1:3] = 0
            values[3] = 127
        arrays[leaf.name] = values.astype(np.int8)
    return Model(config, {name: mx.array(value) for name, value in arrays.items()}, arrays)


def random_text(size: int, seed: int = 0) -> bytes:
    """Few different bytes, the ones with special embeddings and 0 among them."""
    random = np.random.default_rng([seed, size])
    return random.choice(np.array([0, 1, 2, 3, 32, 97, 101, 128, 255]), size).astype(np.uint8).tobytes()


def compile_c(folder: Path, compiler: list[str], name: str, source: str, *options: str) -> Path:
    """Compiles a source beside the folder's model.c and returns the program, or with -c the object."""
    (folder / f"{name}.c").write_text(source)
    output = folder / f"{name}{'.o' if '-c' in options else ''}"
    command = [*compiler, *options, f"{name}.c", "-o", output.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return output


def build(folder: Path, model: Model, compiler: list[str], *options: str) -> Path:
    """The program SHOW of a model."""
    folder.mkdir(exist_ok=True)
    (folder / "model.c").write_text(model.source())
    return compile_c(folder, compiler, "show", SHOW, *options)


def run(program: list[str | Path], *arguments: str | bytes, given: bytes = b"") -> bytes:
    """The output of a program, which must succeed without a message."""
    done = subprocess.run([*program, *arguments], input=given, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr[-4000:]
    return done.stdout


def expected_logits(model: Model, text: bytes) -> np.ndarray:
    """(len(text), 256) int8, by the oracle; the text begins with 0."""
    state = np.zeros((model.config.n_layer, model.config.n_embd), np.int64)
    rows = []
    for byte in text:
        logits, state = oracle.forward(model.arrays, None, 0, state, byte)
        rows.append(logits.astype(np.int8))
    return np.array(rows)


def expected_bits(model: Model, text: bytes) -> bytes:
    """What `bits` prints, by the oracle."""
    tokens = np.frombuffer(b"\0" + text, np.uint8)
    score, _ = oracle.read(model.arrays, None, 0, np.zeros((model.config.n_layer, model.config.n_embd)), tokens)
    return f"{-score / (16 * len(text)):.4f}\n".encode()


def check(program: list[str | Path], model: Model, size: int) -> None:
    """Asserts the oracle's logits, figure and compressed bytes, and that the text comes back."""
    text = random_text(size)
    logits = np.frombuffer(run(program, "logits", given=b"\0" + text), np.int8).reshape(-1, 256)
    assert np.array_equal(logits, expected_logits(model, b"\0" + text))
    assert run(program, "bits", given=text) == expected_bits(model, text)
    for written in (text, run(program, "sample", "", str(size), "9")):
        packed = run(program, "compress", given=written)
        assert packed == compressed.pack_as_c(model.arrays, model.config, written)
        assert run(program, "decompress", given=packed) == written
    parts = compressed.pack(model.arrays, model.config, [(text[:41], 3), (text[:2], 1), (text, 0), (text[:9], 9)])
    assert run(program, "decompress", given=parts) == text[:41] + text[:2] + text + text[:9]


def _sanitized(width: int) -> int:
    model = random_model(1 + width % 3, width)
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), model, ["gcc" if shutil.which("gcc") else "cc"], *SANITIZERS)
        check([program], model, 150)
        for seed in range(3):
            run([program], "sample", "\1\2\3 ae", "100", str(seed))
    return width


def main() -> int:
    """Checks the widths and names each one that is done."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--widths", type=int, nargs=2, default=(1, 130), metavar=("FIRST", "LAST"))
    first, last = parser.parse_args().widths
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for width in pool.map(_sanitized, range(first, last + 1)):
            print(f"width {width}: the oracle's results, and nothing from the sanitizers", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
