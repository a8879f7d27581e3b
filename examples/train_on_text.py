"""Trains a small model on a text file, and prints its bits per byte before and after.

    python examples/train_on_text.py [TEXT] [--epochs N]

Without TEXT it reads the source of Python's argparse module. A few seconds on two cores.
"""

import argparse
from pathlib import Path

import numpy as np

from nanoegg_mlx import Config, Trainer, validate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", type=Path, default=Path(argparse.__file__), help="a text file")
    parser.add_argument("--epochs", type=int, default=60, help="updates to train for (default: 60)")
    options = parser.parse_args()

    # A document is a 0 byte and its UTF-8 bytes; this file is one document. The last tenth is held out.
    tokens = np.frombuffer(b"\0" + options.text.read_bytes(), np.uint8)
    train, valid = np.split(tokens, [len(tokens) * 9 // 10])

    config = Config(
        n_layer=1,
        n_embd=32,
        population=512,
        tokens_per_update=25,
        sigma_shift=3,
        alpha=2.0,
        alpha_decay_timestep=max(options.epochs, 1),
        validation_batch_size=8,
    )
    trainer = Trainer(config, train)
    _, before = validate(trainer.model, valid, config)
    print(f"{options.text}: {len(train):,} bytes to train on, {len(valid):,} held out")
    print(f"before: {before:.3f} bits per byte")

    for _ in range(options.epochs):
        result = trainer.step()
        if trainer.epoch % 10 == 0:
            print(f"epoch {trainer.epoch}: {result.loss_mean:.3f} bits per byte, mean of {config.population} members")

    _, after = validate(trainer.model, valid, config)
    print(f"after {trainer.epoch} epochs: {after:.3f} bits per byte")


if __name__ == "__main__":
    main()
