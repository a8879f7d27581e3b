"""Single kernels of the native extension, and their scalar twins (instruction set "naive"), called with NumPy arrays.

The extension exports no kernels, but a pointer to its table of them; so the tests run the machine code that users get.
What is only there for the tests, kernels.cpp and naive.cpp, is compiled here on first use (a few seconds) and kept in
build/ until a source changes. Without a C++ compiler the tests that need it are skipped.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config
from nanoegg_mlx.engines.native.write_normal_steps import THRESHOLDS, write_normal_steps
from tests import oracle
from tests.engines.inputs import native

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NATIVE = ROOT / "nanoegg_mlx/engines/native"
SOURCES = [
    HERE / "kernels.cpp",
    HERE / "naive.cpp",
    HERE / "naive_nudge.cpp",
    NATIVE / "cpus.cpp",
    NATIVE / "tables.cpp",
    NATIVE / "weights.cpp",
]
FLAGS = ["-std=c++17", "-O1", "-g0", "-fPIC", "-fvisibility=default", "-w"]


@dataclass(frozen=True)
class NoiseValues:
    """The arguments of `_native.Noise`, for those who build it and for the twins."""

    key: tuple[int, int]
    bases: list[np.ndarray]
    rank: int = 1
    sigma_shift: int = 4
    num_perturbations: int = 0

    def native(self) -> Any:
        return native.Noise(**vars(self))


class _Noise(ctypes.Structure):
    """struct Noise of model.h."""

    _fields_ = (
        ("key", ctypes.c_uint32 * 2),
        ("base", ctypes.c_void_p * 13),
        ("rank", ctypes.c_int),
        ("shift", ctypes.c_int),
        ("perturbations", ctypes.c_uint64),
    )

    def __init__(self, noise: NoiseValues) -> None:
        super().__init__(
            (ctypes.c_uint32 * 2)(*noise.key),
            (ctypes.c_void_p * 13)(*(base.ctypes.data for base in noise.bases)),
            noise.rank,
            min(4 + noise.sigma_shift, 31),
            noise.num_perturbations,
        )
        self.keep = noise


def epoch_noise(config: Config, epoch: int) -> NoiseValues:
    """The epoch's perturbations, from the plain Python twin's keys."""
    true_epoch = epoch // config.noise_reuse if config.noise_reuse else 0
    return NoiseValues(
        oracle.make_key(config.seed),
        [
            np.array([oracle.fold_in(key, true_epoch)[0] for key in keys], np.uint32)
            for keys in oracle.leaf_keys(config).values()
        ],
        config.rank,
        config.sigma_shift,
        config.num_perturbations,
    )


def draw(key: tuple[int, int], start: int, count: int, isa: str) -> np.ndarray:
    out = np.empty(count, np.int8)
    _call("draw", isa, *map(ctypes.c_uint32, (*key, start)), ctypes.c_size_t(count), out)
    return out


def normals(m: np.ndarray, isa: str) -> np.ndarray:
    out = np.empty(len(m), np.int8)
    _call("normals", isa, _checked(m, np.uint32), ctypes.c_size_t(len(m)), out)
    return out


def matmul(
    w: np.ndarray,
    x: np.ndarray,
    b: np.ndarray | None = None,
    a: np.ndarray | None = None,
    shift: int = 8,
    *,
    isa: str,
) -> np.ndarray:
    """w (rows, cols), x (members, cols), b (members, rank, cols) and a (members, rank, rows) or None."""
    out = np.empty((len(x), len(w)), np.int8)
    rank = 0 if b is None else b.shape[1]
    factors = [ctypes.c_void_p() if f is None else _checked(f, np.int8) for f in (b, a)]
    _call("matmul", isa, _checked(w, np.int8), *w.shape, _checked(x, np.int8), len(x), *factors, rank, shift, out)
    return out


def products(w: np.ndarray, x: np.ndarray, isa: str) -> np.ndarray:
    out = np.empty((len(x), len(w)), np.int32)
    _call("products", isa, _checked(w, np.int8), *w.shape, _checked(x, np.int8), len(x), out)
    return out


def norm(x: np.ndarray, w: np.ndarray, isa: str) -> np.ndarray:
    out = np.empty_like(x)
    _call("norm", isa, _checked(x, np.int8), _checked(w, np.int8), len(x), out)
    return out


def gate(fa: np.ndarray, fb: np.ndarray, bf: np.ndarray, h: np.ndarray, isa: str) -> np.ndarray:
    """The new fa, and g."""
    rows, out = np.stack([fa, fb, bf, h]), np.empty((2, len(fa)), np.int8)
    _call("gate", isa, _checked(rows, np.int8), len(fa), out)
    return out


def recur(
    ca: np.ndarray, cb: np.ndarray, bh: np.ndarray, fa: np.ndarray, h: np.ndarray, x: np.ndarray, isa: str
) -> np.ndarray:
    """The new h, and the new x."""
    rows, out = np.stack([ca, cb, bh, fa, h, x]), np.empty((2, len(ca)), np.int8)
    _call("recur", isa, _checked(rows, np.int8), len(ca), out)
    return out


def coins(key: tuple[int, int], first: int, count: int, isa: str) -> np.ndarray:
    """Threefry blocks as uint64, the first word in the low half."""
    out = np.empty(count, np.uint64)
    _call("coins", isa, *map(ctypes.c_uint32, key), ctypes.c_uint64(first), ctypes.c_size_t(count), out)
    return out


def flip(words: np.ndarray, v: np.ndarray, isa: str, inverted: bool = False) -> np.ndarray:
    """`v` (64 words,) int8 with the signs of the words' bits."""
    out = np.empty_like(v)
    size = ctypes.c_size_t(len(v))
    _call("flip", isa, _checked(words, np.uint64), int(inverted), size, _checked(v, np.int8), out)
    return out


def gate_nudged(
    fa: np.ndarray, fb: np.ndarray, bf: np.ndarray, e: np.ndarray, h: np.ndarray, isa: str
) -> tuple[np.ndarray, np.ndarray]:
    """The new fa, and g."""
    rows, out = np.stack([fa, fb, bf, e, h]), np.empty((2, len(fa)), np.int8)
    _call("gate_nudged", isa, _checked(rows, np.int8), len(fa), out)
    return out[0], out[1]


def recur_nudged(*rows: np.ndarray, isa: str) -> tuple[np.ndarray, np.ndarray]:
    """Of ca, cb, bh, e, fa, h, x: the new h, and the new x."""
    out = np.empty((2, len(rows[0])), np.int8)
    _call("recur_nudged", isa, _checked(np.stack(rows), np.int8), len(rows[0]), out)
    return out[0], out[1]


def add_nudged(x: np.ndarray, y: np.ndarray, e: np.ndarray, isa: str) -> np.ndarray:
    out = np.empty_like(x)
    _call("add_nudged", isa, _checked(np.stack([x, y, e]), np.int8), len(x), out)
    return out


def head_errors(logits: np.ndarray, log2: np.ndarray, target: int, isa: str) -> np.ndarray:
    """Mean errors of a pair's logits (2, V) int8; log2 (2,) int32 of their sums of EXP2."""
    out = np.empty(logits.shape[1], np.int16)
    _call("head_errors", isa, _checked(logits, np.int8), len(out), _checked(log2, np.int32), target, out)
    return out


def credit(d: np.ndarray, decay: int, isa: str) -> np.ndarray:
    """clip(d) and clip(R) of d (T, P) int32: (2, T, P) int8."""
    out = np.empty((2, *d.shape), np.int8)
    _call("credit", isa, _checked(d, np.int32), ctypes.c_size_t(d.shape[0]), d.shape[1], decay, out)
    return out


def vote_sums(
    words: np.ndarray, w: np.ndarray, byte: np.ndarray, x: np.ndarray, n: int, isa: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of coins (K,) uint64, w (K,), bytes (K,) and inputs (K, entries): Z (n, entries), S, and Z by byte (256, n)."""
    Z, S, by_byte = (np.zeros(shape, np.int64) for shape in ((n, x.shape[1]), x.shape[1], (256, n)))
    given = (_checked(words, np.uint64), _checked(w, np.int8), _checked(byte, np.uint8), _checked(x, np.int8))
    _call("vote_sums", isa, *given, ctypes.c_size_t(len(w)), x.shape[1], n, Z, S, by_byte)
    return Z, S, by_byte


def coin_digits(words: np.ndarray, w: np.ndarray, isa: str) -> tuple[np.ndarray, np.ndarray]:
    """Of coins (J, K) uint64 and w (J, K) int8, summed over J: the low and the high digits (K, 64)."""
    samples, count = w.shape
    low, high = np.empty((count, 64), np.int8), np.empty((count, 64), np.int8)
    given = _checked(words, np.uint64), _checked(w, np.int8)
    _call("coin_digits", isa, *given, samples, ctypes.c_size_t(count), low, high)
    return low, high


def weighted_squares(q: np.ndarray, x: np.ndarray, isa: str) -> np.ndarray:
    """Of q (K,) int32 and inputs (K, entries): the sums (entries,) of q x^2."""
    S = np.zeros(x.shape[1], np.int64)
    size = ctypes.c_size_t(len(q))
    _call("weighted_squares", isa, _checked(x, np.int8), _checked(q, np.int32), size, x.shape[1], S)
    return S


def log_likelihood(logits: np.ndarray, target: int, isa: str) -> int:
    return _call("log_likelihood", isa, _checked(logits, np.int8), len(logits), target)


def move(z: np.ndarray, old: np.ndarray, bound: int, isa: str) -> np.ndarray:
    out = np.empty_like(old)
    size = ctypes.c_size_t(len(z))
    _call("move", isa, _checked(z, np.int64), size, _checked(old, np.int8), ctypes.c_int64(bound), out)
    return out


def log2_table(s: int) -> int:
    """LOG2 of spec section 5, by the engine's table."""
    return _library().log2_table(ctypes.c_uint32(s))


def exp2_entry(i: int) -> int:
    return _library().exp2_entry(i)


def pow2_entry(k: int) -> int:
    return _library().pow2_entry(k)


def cgroup_cpus(root: str = "") -> int:
    """The processors that the control groups' quota grants, rounded up; 0 if there is none."""
    return _library().quota(os.fsencode(root))


def naive_score(
    params: dict[str, np.ndarray],
    inputs: np.ndarray,
    targets: np.ndarray,
    states: np.ndarray,
    noise: NoiseValues | None = None,
    first_member: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scalar twin of _native.score() and logits(): scores, new states, logits."""
    shape = _shape(params)
    members, tokens = inputs.shape
    scores, logits = np.empty(members, np.int64), np.empty((members, tokens, shape[0]), np.int8)
    new_states = states.copy()
    _call(
        "naive_score",
        (ctypes.c_int * 3)(*shape),
        _pointers(params),
        None if noise is None else ctypes.byref(_Noise(noise)),
        ctypes.c_uint64(first_member),
        members,
        _checked(inputs, np.uint8),
        _checked(targets, np.uint8),
        ctypes.c_size_t(tokens),
        _checked(new_states, np.int8),
        scores,
        logits,
    )
    return scores, new_states, logits


def naive_votes(
    params: dict[str, np.ndarray],
    noise: NoiseValues,
    fitness: np.ndarray,
    use_clt: bool,
    normalised: bool,
    reads: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The scalar twin of _native.votes()."""
    Z = {name: np.empty(value.shape, np.int64) for name, value in params.items()}
    shape, size = (ctypes.c_int * 3)(*_shape(params)), ctypes.c_size_t(len(fitness))
    values = ctypes.byref(_Noise(noise))
    lanes = [ctypes.c_void_p(), ctypes.c_size_t(1)]
    if reads is not None:
        lanes = [_checked(reads, np.bool_), ctypes.c_size_t(len(fitness) // len(reads))]
    how = int(use_clt), int(normalised), *lanes
    _call("naive_votes", shape, values, _checked(fitness, np.int8), size, *how, _pointers(Z))
    return Z


def _shape(params: dict[str, np.ndarray]) -> tuple[int, int, int]:
    return *params["emb"].shape, len(params["blocks.att.bf"])


def _pointers(leaves: dict[str, np.ndarray]) -> Any:
    return (ctypes.c_void_p * 13)(*(leaves[name].ctypes.data for name in sorted(leaves)))


def _checked(array: np.ndarray, dtype: Any) -> np.ndarray:
    assert array.dtype == dtype and array.flags.c_contiguous
    return array


def _call(name: str, *arguments: Any) -> int:
    def converted(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return ctypes.c_void_p(value.ctypes.data)
        return value.encode() if isinstance(value, str) else value

    return getattr(_library(), name)(*map(converted, arguments))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_built()))
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # The size of the table is part of the name: an extension built from other sources is refused.
    name = b"nanoegg.isas.%d" % library.isa_bytes()
    library.use_isas(ctypes.c_void_p(pointer(native._isas, name)))
    return library


def _built() -> Path:
    """The library's path, compiled if a source has changed."""
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CXX", ""), "c++", "g++", "clang++"])), None)
    if compiler is None:
        pytest.skip("the scalar twins are compiled for the tests, and there is no C++ compiler")
    headers = sorted([*HERE.glob("*.h"), *NATIVE.glob("*.h"), THRESHOLDS, Path(__file__)])
    content = b"".join(path.read_bytes() for path in [*SOURCES, *headers])
    folder = ROOT / "build/test-kernels"
    library = folder / f"{hashlib.sha256(content + compiler.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        write_normal_steps(Path(work) / "normal_steps.h")
        include = [f"-I{path}" for path in (work, NATIVE, HERE)]

        def compiled(source: Path) -> str:
            target = str(Path(work) / f"{source.stem}.o")
            subprocess.run([compiler, *FLAGS, *include, "-c", str(source), "-o", target], check=True)
            return target

        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(compiled, SOURCES))
        linked = str(Path(work) / "linked.so")
        subprocess.run([compiler, "-shared", "-pthread", *objects, "-o", linked], check=True)
        os.replace(linked, library)
    return library
