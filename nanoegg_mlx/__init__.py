"""nanoegg-mlx: integer-only language models pretrained with evolution strategies, in MLX, bit for bit.

config  = Config.from_toml("configs/quickstart.toml")
trainer = Trainer(config, train_tokens)
result  = trainer.step()
scores, bits_per_byte = validate(trainer.model, valid_tokens, config)
text    = bytes(generate(trainer.model, config, b"def ", tokens=100))
packed  = compress(text, trainer.model, config)
"""

from importlib import metadata

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import init_params
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.compress import compress, decompress
from nanoegg_mlx.measure.evaluate import evaluate, validate
from nanoegg_mlx.measure.sample import Sampling, generate
from nanoegg_mlx.training.trainer import EpochResult, Trainer

__all__ = [
    "Config",
    "EpochResult",
    "InputError",
    "Sampling",
    "Trainer",
    "compress",
    "decompress",
    "evaluate",
    "generate",
    "init_params",
    "validate",
]

__version__ = metadata.version("nanoegg-mlx")
