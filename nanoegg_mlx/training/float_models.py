"""Float models for comparison, trained by backpropagation: a transformer, and the integer minGRU's twin in floats.

Both map a window of bytes and a state to logits and the next state; the transformer's state is empty.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.fixed_point import MAX_INT8, ONE
from nanoegg_mlx.errors import InputError

_HEAD = 64
"""Width of an attention head."""
_LIMIT = MAX_INT8 / ONE
"""The largest value of an int8 activation in Q4."""


class Transformer(nn.Module):
    """Pre-norm, GELU, learnt positions: MLX's own encoder under a causal mask. Its context is the window."""

    def __init__(self, config: Config) -> None:
        """Layers, width, vocabulary and context are the config's. Raises InputError for a width heads do not divide."""
        super().__init__()
        width = config.n_embd
        if width > _HEAD and width % _HEAD:
            raise InputError(
                f"n_embd is {width}; it must be a multiple of {_HEAD}, the width of an attention head, or less."
            )
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.tokens_per_update, width)
        self.encoder = nn.TransformerEncoder(
            config.n_layer, width, max(width // _HEAD, 1), mlp_dims=4 * width, activation=nn.gelu, norm_first=True
        )
        self.head = nn.Linear(width, config.vocab_size)

    def start(self, rows: int) -> mx.array:
        """The state before a text: nothing, (rows, 0)."""
        return mx.zeros((rows, 0))

    def __call__(self, inputs: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
        """Logits (B, T, V) float32, in nats, for the byte after each of `inputs` (B, T), T at most the context."""
        length = inputs.shape[1]
        x = self.tokens(inputs) + self.positions.weight[:length]
        return self.head(self.encoder(x, nn.MultiHeadAttention.create_additive_causal_mask(length))), state


class FloatMinGRU(nn.Module):
    """The network of core/model.py in floats: Q4 without rounding. Gradients pass the clips where they are not active.

    Initial weights are standard normal, as the integer model's before rounding; norm weights are absent, since the
    estimators leave them at 1 or near it.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        V, D = config.vocab_size, config.n_embd
        self.emb, self.head = mx.random.normal((V, D)), mx.random.normal((V, D))
        self.layers = [_Layer(D) for _ in range(config.n_layer)]

    def start(self, rows: int) -> mx.array:
        """The state before a text: zeros, (rows, L, D)."""
        return mx.zeros((rows, len(self.layers), self.emb.shape[1]))

    def __call__(self, inputs: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
        """Logits (B, T, V) float32, in nats, for the byte after each of `inputs` (B, T); the state (B, L, D)."""
        states, outputs = [state[:, layer] for layer in range(len(self.layers))], []
        for t in range(inputs.shape[1]):
            token = inputs[:, t]
            x = self.emb[token]
            for layer, block in enumerate(self.layers):
                x, states[layer] = block(x, states[layer] * (token != 0)[:, None])
            outputs.append(_norm(x))
        # A logit of the integer model is a sixteenth of a bit, which in Q4 is a bit.
        return math.log(2) * _product(self.head, mx.stack(outputs, axis=1)), mx.stack(states, axis=1)


class _Layer(nn.Module):
    def __init__(self, D: int) -> None:
        super().__init__()
        self.Wf, self.Uf, self.Wh, self.Uh = (mx.random.normal((D, D)) for _ in range(4))
        self.bf, self.bh = mx.zeros(D), mx.zeros(D)
        self.mlp0, self.mlp1 = mx.random.normal((4 * D, D)), mx.random.normal((D, 4 * D))

    def __call__(self, x: mx.array, h: mx.array) -> tuple[mx.array, mx.array]:
        y = _norm(x)
        f = (_clip(_product(self.Wf, y) + _product(self.Uf, h) + self.bf) + _LIMIT) / ONE
        c = _clip(_product(self.Wh, y) + _product(self.Uh, f * h) + self.bh)
        h = h + f * (c - h)
        r = _clip(x + h)
        return _clip(r + _product(self.mlp1, _product(self.mlp0, _norm(r)))), h


def _clip(x: mx.array) -> mx.array:
    return mx.clip(x, -_LIMIT, _LIMIT)


def _product(W: mx.array, x: mx.array) -> mx.array:
    return _clip(x @ W.T / math.sqrt(x.shape[-1]))


def _norm(x: mx.array) -> mx.array:
    return _clip(x / mx.maximum(mx.mean(mx.abs(x), axis=-1, keepdims=True), 1 / ONE))


MODELS = {"transformer": Transformer, "mingru": FloatMinGRU}
"""By the name that `nanoegg baseline` gives them."""
