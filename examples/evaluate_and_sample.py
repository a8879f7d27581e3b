"""Evaluates a model on a text and samples from it.

    python examples/evaluate_and_sample.py [CHECKPOINT] [--text FILE] [--prompt TEXT]

CHECKPOINT is a checkpoint's folder, for example checkpoints/quickstart/latest. Without it, a tiny model is trained
first, which takes seconds. Without --text it reads the source of Python's argparse module.
"""

import argparse
from pathlib import Path

import mlx.core as mx
import numpy as np

from nanoegg_mlx import Config, Trainer, evaluate, generate


def open_model(checkpoint: Path | None, tokens: np.ndarray) -> tuple[Config, dict[str, mx.array]]:
    """Returns the config and parameters of a checkpoint, or of a tiny model trained on `tokens`."""
    if checkpoint:
        config = Config.from_toml(checkpoint / "config.toml")
        return config, dict(mx.load(str(checkpoint / "model.safetensors")))
    config = Config(n_layer=1, n_embd=16, population=512, tokens_per_update=25, sigma_shift=3, alpha=0.5)
    trainer = Trainer(config, tokens)
    for _ in range(40):
        trainer.step()
    return config, trainer.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, help="a checkpoint's folder")
    parser.add_argument("--text", type=Path, default=Path(argparse.__file__), help="text to evaluate")
    parser.add_argument("--prompt", default="def ", help="start of the sample (default: 'def ')")
    options = parser.parse_args()

    tokens = np.frombuffer(b"\0" + options.text.read_bytes(), np.uint8)
    config, params = open_model(options.checkpoint, tokens)

    # One row reads the whole text in order. More rows are faster, but each begins without context.
    evaluation = evaluate(params, tokens, config.replace(validation_batch_size=1))
    print(f"{options.text}: {evaluation.tokens:,} tokens")
    print(f"  reference's integer figure  {evaluation.bits_per_byte:.4f} bits per byte")
    print(f"  exact code length           {evaluation.exact_bits_per_byte:.4f} bits per byte")

    sample = bytes(generate(params, config, options.prompt.encode(), tokens=100))
    # As a bytes literal, since a weak model writes control characters too.
    print(options.prompt.encode() + sample)


if __name__ == "__main__":
    main()
