"""EGGROLL: evolution strategies with low-rank noise for any MLX model, after "Evolution Strategies at the Hyperscale".

Evolution strategies climb the smoothed fitness J(mu) = E[f(mu + sigma E)], E standard normal. They evaluate the fitness
of N perturbed members and move towards the noise of the fitter ones (the paper's Eq. 8, its constant kept in the rate):

    mu <- mu + learning_rate / (N sigma) * sum_i f_i E_i

For a matrix of m by n, EGGROLL draws E = A B^T / sqrt(r) instead, A (m, r) and B (n, r) standard normal. Two things
become cheap, and they are the whole method:

    the forward pass    x (W + sigma E)^T = x W^T + sigma / sqrt(r) (x B) A^T     one product with W for all members
    the update          sum_i f_i E_i = [f_1 A_1 ... f_N A_N] [B_1 ... B_N]^T / sqrt(r)     one product, of rank N r

In linear and embedding layers no E is ever formed. No noise is stored: it is drawn again from a counter, (seed, step,
member, leaf), where needed.

    eggroll = EggRoll(model, population=256, sigma=0.05, learning_rate=0.1)
    report = eggroll.step(lambda model, x, y: mx.mean(mx.argmax(model(x), axis=-1) == y), x, y)

    noise       keys, low-rank and dense draws, weighted sums
    layers      the perturbed product, nn.Linear and nn.Embedding of one member, the `perturbed` context
    shaping     from fitness to weights
    optimizer   EggRoll and its Report
    trees       flat parameter trees;  checks: errors for bad arguments
    claims/     the paper's claims as experiments

The integer model (core/noise.py, core/update.py) is EGGROLL too, with integers and a sign test. The two share no code,
only the layout of LowRank: both store factors with the rank first.
"""

from nanoegg_mlx.eggroll.layers import perturbed, perturbed_product
from nanoegg_mlx.eggroll.noise import (
    LowRank,
    Noise,
    NoiseKind,
    dense,
    draw,
    draw_keys,
    matrix_shape,
    members_of,
    weighted_sum,
)
from nanoegg_mlx.eggroll.optimizer import EggRoll, Report
from nanoegg_mlx.eggroll.shaping import Shaping, centered_ranks, kept_members, shape_fitness
from nanoegg_mlx.eggroll.trees import Tree, flat

__all__ = [
    "EggRoll", "LowRank", "Noise", "NoiseKind", "Report", "Shaping", "Tree", "centered_ranks", "dense", "draw",
    "draw_keys", "flat", "kept_members", "matrix_shape", "members_of", "perturbed", "perturbed_product",
    "shape_fitness", "weighted_sum",
]  # fmt: skip
