"""Smoke test of an installed package: import, info, prepare, train on both engines, eval.

    python .ci/smoke.py                    in an environment with the wheel and its extra `cpu` (Linux)
    python .ci/smoke.py --extension-only   loads the native extension without MLX

The second form is for build containers: MLX's Linux wheels need a newer C library than the containers have.
"""

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = "".join(f"def f{i}(x):\n    return x * {i * i} + {i}\n" for i in range(400))
MODEL = ("--n-layer=1", "--n-embd=16", "--population=16", "--tokens-per-update=10", "--validation-batch-size=8")


def check_extension() -> None:
    """Loads the native extension from its file, since its package imports MLX."""
    files = metadata.files("nanoegg-mlx") or []
    (path,) = [file.locate() for file in files if file.name.startswith("_native.") and file.suffix == ".so"]
    spec = importlib.util.spec_from_file_location("_native", str(path))
    assert spec and spec.loader
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    print(f"extension: {path}, {len(dir(extension))} names")


def check_import() -> None:
    """Checks that the package comes from the environment, with the checkout's version."""
    import nanoegg_mlx
    from nanoegg_mlx import Config, Trainer, evaluate, generate, init_params, validate
    from nanoegg_mlx.eggroll import EggRoll

    assert all(map(callable, (Config, Trainer, evaluate, generate, init_params, validate, EggRoll)))
    assert Path(nanoegg_mlx.__file__).is_relative_to(sys.prefix), nanoegg_mlx.__file__
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert metadata.version("nanoegg-mlx") == version
    print(f"import: nanoegg-mlx {version}")


def nanoegg(folder: Path, *arguments: str) -> str:
    """Runs the installed command in `folder` and returns its stdout."""
    command = [str(Path(sys.executable).with_name("nanoegg")), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    print(f"nanoegg {arguments[0]}: passed", flush=True)
    return done.stdout


def check_commands(folder: Path) -> None:
    """Prepares a text, trains two epochs on each engine, and compares the results."""
    info = json.loads(nanoegg(folder, "info", "--json"))
    assert "instruction set" in info, info
    for name in ("train.txt", "valid.txt"):
        (folder / name).write_text(TEXT)
    nanoegg(folder, "prepare", "--train", "train.txt", "--valid", "valid.txt", "--name", "smoke")
    caches = ("--train=data/smoke_train.npy", "--valid=data/smoke_valid.npy")
    results = []
    for engine in ("mlx", "cpu"):
        nanoegg(folder, "train", *caches, *MODEL, "--num-epochs=2", f"--engine={engine}", f"--name={engine}")
        evaluation = json.loads(nanoegg(folder, "eval", f"checkpoints/{engine}", "--json"))
        params = (folder / "checkpoints" / engine / "latest" / "model.safetensors").read_bytes()
        results.append((evaluation["epoch"], evaluation["bits_per_byte"], hashlib.sha256(params).hexdigest()))
    assert results[0] == results[1] and results[0][0] == 2, results
    print(f"both engines: {results[0][1]:.4f} bits per byte, the same parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extension-only", action="store_true", help="load the native extension, without MLX")
    options = parser.parse_args()
    check_extension()
    if not options.extension_only:
        check_import()
        with tempfile.TemporaryDirectory() as folder:
            check_commands(Path(folder))
    print("Smoke test passed.")


if __name__ == "__main__":
    main()
