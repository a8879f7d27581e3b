"""Kernels of the MLX engine for one token of the default model, and the share that mx.compile has fused.

python benchmarks/kernels.py [--layers 6] [--width 256]

Counts the graph of one compiled step (`mx.export_to_dot`), for any number of members. Views (slices, transposes,
reshapes of contiguous arrays) launch nothing on a device, so they are listed apart. A kernel that mx.compile has made
of several operations counts once; the same step without mx.compile gives the operations.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import mlx.core as mx

from nanoegg_mlx import Config, init_params
from nanoegg_mlx.core.activations import cohort_step
from nanoegg_mlx.core.coins import coin_key
from nanoegg_mlx.core.noise import leaf_bases, member_noise, pair_noise
from nanoegg_mlx.core.score import resident_weights, scoring_step

VIEWS = {"Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unflatten"}
"""Primitives that share their input's memory. A reshape of transposed memory copies; the model has none."""


def perturbed_weights(config: Config) -> list[mx.array]:
    """The outputs of a step of four members under perturbed weights."""
    pairs = mx.arange(2, dtype=mx.uint32)
    noise = member_noise(mx.vmap(partial(pair_noise, config), in_axes=(None, 0))(leaf_bases(config, 0), pairs))
    states, tokens = mx.zeros((4, config.n_layer, config.n_embd), mx.int8), mx.array([1, 2, 3, 4], dtype=mx.uint8)
    weights = resident_weights(init_params(config))
    mx.eval(noise, states, tokens)
    return list(scoring_step(config.shift)(weights, noise, states, tokens, tokens))


def validation(config: Config) -> list[mx.array]:
    """The outputs of a step of four rows under the unperturbed model."""
    states, tokens = mx.zeros((4, config.n_layer, config.n_embd), mx.int8), mx.array([1, 2, 3, 4], dtype=mx.uint8)
    weights = resident_weights(init_params(config))
    mx.eval(states, tokens)
    return list(scoring_step(config.shift)(weights, {}, states, tokens, tokens))


def nudged_activations(config: Config) -> list[mx.array]:
    """The outputs of a step of two pairs under nudged activations."""
    return _nudged(config.replace(perturb="activations"))


def lane_baseline(config: Config) -> list[mx.array]:
    """The outputs of a step of two lanes of four members, three of them nudged."""
    return _nudged(config.replace(perturb="activations", antithetic=False, group_size=4))


def _nudged(config: Config) -> list[mx.array]:
    states = mx.zeros((2, config.cohort, config.n_layer, config.n_embd), mx.int8)
    tokens, cohorts, t, key = (
        mx.array([1, 2], dtype=mx.uint8), mx.arange(2, dtype=mx.uint64), mx.array(0, dtype=mx.uint64),
        coin_key(config, 0),
    )  # fmt: skip
    weights = resident_weights(init_params(config))
    mx.eval(states, tokens, cohorts, t, key)
    token, new_states = cohort_step(config)(weights, key, cohorts, t, states, tokens, tokens)
    return [token.differences, token.scores, *token.xi.values(), *token.inputs.values(), token.error, new_states]


def primitives(outputs: list[mx.array]) -> Counter[str]:
    """The primitives of a graph that was not evaluated, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *outputs)
        return Counter(re.findall(r'label ?="(\w+)', path.read_text(encoding="utf-8")))


def main() -> None:
    """Prints a table, and the kernels by kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    config = Config(n_layer=options.layers, n_embd=options.width)
    print(f"{'step':<20}{'operations':>11}{'kernels':>9}{'fused':>7}{'in fused':>10}{'views':>7}")
    for build in (perturbed_weights, nudged_activations, lane_baseline, validation):
        counts = []
        for switch in (mx.disable_compile, mx.enable_compile):
            switch()
            scoring_step.cache_clear(), cohort_step.cache_clear()
            counts.append(primitives(build(config)))
        plain, compiled = counts
        kernels = Counter({name: count for name, count in compiled.items() if name not in VIEWS})
        operations = sum(count for name, count in plain.items() if name not in VIEWS)
        fused = sum(count for name, count in kernels.items() if name.startswith("Compiled"))
        share = 1 - (kernels.total() - fused) / operations
        views = compiled.total() - kernels.total()
        print(f"{build.__name__:<20}{operations:>11}{kernels.total():>9}{fused:>7}{share:>10.0%}{views:>7}")
        single = [f"{count} {name}" for name, count in kernels.most_common() if not name.startswith("Compiled")]
        print(f"    not fused: {', '.join(single)}")


if __name__ == "__main__":
    main()
