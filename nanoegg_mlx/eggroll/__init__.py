"""EGGROLL: evolution strategies with low-rank noise for any MLX model, after "Evolution Strategies at the Hyperscale".

Evolution strategies climb the smoothed fitness J(mu) = E[f(mu + sigma E)], E standard normal, by asking for the fitness
of N perturbed members and moving towards the noise that did well (the paper's Eq. 8, its constant kept in the rate):

    mu <- mu + learning_rate / (N sigma) * sum_i f_i E_i

For a matrix of m by n, EGGROLL draws E = A B^T / sqrt(r) instead, A (m, r) and B (n, r) standard normal. Two things
become cheap, and they are the whole method:

    the forward pass    x (W + sigma E)^T = x W^T + sigma / sqrt(r) (x B) A^T     one product with W for all members
    the update          sum_i f_i E_i = [f_1 A_1 ... f_N A_N] [B_1 ... B_N]^T / sqrt(r)     one product, of rank N r

No E is ever formed and no noise is stored: it is drawn again from a counter, (seed, step, member, leaf), where needed.

    eggroll = EggRoll(model, population=256, sigma=0.05, learning_rate=0.1)
    report = eggroll.step(lambda model, x, y: mx.mean(mx.argmax(model(x), axis=-1) == y), x, y)

The integer model (noise.py, evolve.py) is EGGROLL too, with integers and a sign test; nothing is shared with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from nanoegg_mlx.errors import InputError

Shaping = Literal["none", "centered-rank", "zscore", "sign"]
NoiseKind = Literal["lowrank", "full"]
Tree = Any
"""An mlx.nn.Module's parameters, or any nesting of dicts and lists of arrays."""


class LowRank(NamedTuple):
    """The noise of a matrix of m by n, E = A B^T / sqrt(r); leading axes are many draws at once."""

    A: mx.array
    """(..., m, r)"""
    B: mx.array
    """(..., n, r)"""


Noise = dict[str, LowRank | mx.array]
"""Leaf name -> noise: of a matrix low-rank, of a vector or scalar (and of everything if noise is "full") dense."""


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(m, n) of a leaf of two or more axes: the first by all others (a convolution's outputs by the rest)."""
    return shape[0], math.prod(shape[1:])


def draw_keys(seed: int, step: int, leaf: int, draws: range) -> mx.array:
    """The keys of some draws, uint32 (K, 2): two words from (seed, step, leaf), the number of the draw added to one."""
    high, low = np.random.SeedSequence(seed, spawn_key=(step, leaf)).generate_state(2).tolist()
    number = mx.arange(draws.start, draws.stop, dtype=mx.uint32)
    return mx.stack([mx.full(len(draws), high, mx.uint32), number + mx.array(low, mx.uint32)], axis=1)


def draw(keys: mx.array, shape: Sequence[int], rank: int | None) -> LowRank | mx.array:
    """Standard normal noise for a leaf, a function of the keys alone.

    Args:
        keys: uint32 (K, 2), one for each draw.
        shape: of the leaf.
        rank: r of a low-rank draw, or None for a dense one; vectors and scalars are always dense.

    Returns:
        LowRank of float32 (K, m, r) and (K, n, r), or float32 (K, *shape).
    """

    def normals(count: int) -> mx.array:
        return mx.vmap(lambda one: mx.random.normal((count,), key=one))(keys)

    if rank is None or len(shape) < 2:
        return normals(math.prod(shape)).reshape(-1, *shape)
    m, n = matrix_shape(shape)
    factors = normals((m + n) * rank).reshape(-1, m + n, rank)
    return LowRank(A=factors[:, :m], B=factors[:, m:])


def members_of(E: LowRank | mx.array, scale: float, antithetic: bool) -> LowRank | mx.array:
    """`scale` times the noise of each member: a draw is one member's, or with +1 and -1 two neighbours'.

    Args:
        E: noise with a leading axis of K draws.
        scale: sigma to get perturbations; 1 / sqrt(r) is put in here, so that A B^T alone is a perturbation.

    Returns:
        The same with a leading axis of K members, or of 2 K: + - + -.
    """
    if isinstance(E, LowRank):
        A = members_of(E.A, scale / math.sqrt(E.A.shape[-1]), antithetic)
        assert isinstance(A, mx.array)
        return LowRank(A=A, B=mx.repeat(E.B, 2, axis=0) if antithetic else E.B)
    E = scale * E
    return mx.flatten(mx.stack([E, -E], axis=1), 0, 1) if antithetic else E


def dense(delta: LowRank | mx.array, shape: Sequence[int]) -> mx.array:
    """A perturbation as an array of the leaf's shape: what the fast paths never form."""
    return (delta.A @ delta.B.swapaxes(-1, -2) if isinstance(delta, LowRank) else delta).reshape(shape)


def weighted_sum(E: LowRank | mx.array, weights: mx.array, shape: Sequence[int]) -> mx.array:
    """sum_k w_k E_k over draws, in one matrix product.

    Args:
        E: noise with a leading axis of K draws.
        weights: float32 (K,).
        shape: of the leaf.

    Returns:
        float32 (*shape). Of rank K r at most where the noise is low-rank.
    """
    if not isinstance(E, LowRank):
        return (weights @ E.reshape(len(weights), -1)).reshape(shape)
    rank = E.A.shape[-1]
    A = weights[:, None, None] * E.A
    # (K, m, r) -> (m, K r): the sum over draws and ranks is the inner dimension of the product.
    A, B = (mx.moveaxis(factor, 0, 1).reshape(factor.shape[1], -1) for factor in (A, E.B))
    return (A @ B.T / math.sqrt(rank)).reshape(shape)


def perturbed_product(x: mx.array, W: mx.array, A: mx.array, B: mx.array) -> mx.array:
    """x (W + A B^T)^T without the sum: x W^T + (x B) A^T.

    Args:
        x: (..., n).
        W: (m, n).
        A, B: (m, r) and (n, r), the scale of the noise included.

    Returns:
        (..., m). Under mx.vmap the product with W is shared by the population, as `_perturbed_products` does it.
    """
    return _perturbed_product(x, W, A, B)


_perturbed_product: Any = mx.custom_function(lambda x, W, A, B: x @ W.T + (x @ B) @ A.T)


@_perturbed_product.vmap
def _perturbed_products(inputs: Sequence[mx.array], axes: Sequence[int | None]) -> tuple[mx.array, int]:
    """The whole population at once.

    W has no member axis: its product is one matrix multiplication of all the members' rows, or where the members share
    x, of x alone.
    """
    x, W, A, B = [v if axis is None else mx.moveaxis(v, axis, 0) for v, axis in zip(inputs, axes, strict=True)]
    of_x, of_W, of_A, of_B = (axis is not None for axis in axes)
    if not (of_W or of_A or of_B):  # a vmap of the user's own, inside one member
        return perturbed_product(x, W, A, B), 0
    if of_W or not (of_A and of_B):  # not a population of one model: every factor gets the axis, nothing is shared
        x, W, A, B = (v if axis is not None else v[None] for v, axis in zip((x, W, A, B), axes, strict=True))
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        y = rows @ W.swapaxes(1, 2) + (rows @ B) @ A.swapaxes(1, 2)
        return y.reshape(y.shape[0], *x.shape[1:-1], y.shape[-1]), 0
    members, n, rank = B.shape
    rows = x.reshape(-1, n)
    if of_x:
        xB = x.reshape(members, -1, n) @ B
    else:
        xB = (rows @ mx.moveaxis(B, 0, 1).reshape(n, -1)).reshape(-1, members, rank).swapaxes(0, 1)
    base = (rows @ W.T).reshape(*x.shape[:-1], -1)
    one_member = x.shape[1:-1] if of_x else x.shape[:-1]
    return base + (xB @ A.swapaxes(1, 2)).reshape(members, *one_member, -1), 0


class _PerturbedLinear(nn.Linear):
    """What an nn.Linear is while a member runs: the same object and weights, and a member's factors beside them."""

    weight: mx.array
    bias: mx.array
    _factors: LowRank

    def __call__(self, x: mx.array) -> mx.array:
        y = perturbed_product(x, self.weight, *self._factors)
        return y + self.bias if "bias" in self else y


class _PerturbedEmbedding(nn.Embedding):
    """What an nn.Embedding is while a member runs."""

    weight: mx.array
    _factors: LowRank

    def __call__(self, x: mx.array) -> mx.array:
        A, B = self._factors
        return self.weight[x] + A[x] @ B.T

    def as_linear(self, x: mx.array) -> mx.array:
        return perturbed_product(x, self.weight, *self._factors)


# Exact types: a subclass may do anything with its weight, so it gets materialised ones.
_PERTURBED: dict[type, type] = {nn.Linear: _PerturbedLinear, nn.Embedding: _PerturbedEmbedding}


@contextmanager
def perturbed(model: nn.Module, deltas: Noise) -> Iterator[nn.Module]:
    """The model as one member has it, for the length of a `with` block; the user's own __call__ runs unchanged.

    An nn.Linear or nn.Embedding keeps its weight and computes with factors; for every other leaf (vectors, convolution
    kernels, weights of other layers) the sum of parameter and perturbation is put in the model. At the end all
    is as it was, running statistics that the call changed included.

    Args:
        deltas: leaf name -> perturbation of one member, sigma included (see `members_of`). Under mx.vmap over
            them the block runs for the whole population.
    """
    before = model.parameters()
    leaves = flat(before)
    layers = {f"{path}.weight" if path else "weight": layer for path, layer in model.named_modules()}
    swapped: list[tuple[nn.Module, type]] = []
    summed = []
    try:
        for name, delta in deltas.items():
            layer = layers.get(name)
            if layer is not None and isinstance(delta, LowRank) and type(layer) in _PERTURBED:
                swapped.append((layer, type(layer)))
                # Past nn.Module's own __setattr__, so that the factors are in nobody's parameters().
                object.__setattr__(layer, "_factors", delta)
                layer.__class__ = _PERTURBED[type(layer)]
            else:
                summed.append((name, leaves[name] + dense(delta, leaves[name].shape)))
        model.update(tree_unflatten(summed))
        yield model
    finally:
        for layer, kind in swapped:
            layer.__class__ = kind
            object.__delattr__(layer, "_factors")
        model.update(before)


def kept_members(fitness: np.ndarray, antithetic: bool) -> np.ndarray:
    """Which members count: bool (N,). A member with a fitness that is not finite is dropped, and its twin with it.

    The twin goes because alone it is no difference: its whole fitness, however large its constant part, would be taken
    for the merit of its noise.
    """
    finite = np.isfinite(fitness)
    return np.repeat(finite[0::2] & finite[1::2], 2) if antithetic else finite


def centered_ranks(fitness: np.ndarray) -> np.ndarray:
    """Ranks mapped to [-1/2, 1/2], equal fitness sharing the mean of its ranks: float64 (N,)."""
    if len(fitness) < 2:
        return np.zeros(len(fitness))
    _, which, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[which] / (len(fitness) - 1) - 0.5


def shape_fitness(
    fitness: np.ndarray,
    shaping: Shaping = "none",
    baseline: Literal["none", "mean"] | float = "mean",
    antithetic: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The weight of each member in the update.

    Args:
        fitness: (N,), the higher the better; antithetic twins are neighbours.
        shaping: `none`; `centered-rank`: ranks in [-1/2, 1/2]; `zscore`: over the standard deviation; `sign`: +1 or -1,
            against the twin if there is one (so that only the better of a pair counts), else against the baseline.
        baseline: what is subtracted first: nothing, the mean of the kept members, or a number of one's own.

    Returns:
        The weights, float64 (N,), 0 for a dropped member, and which members were kept, bool (N,).
    """
    fitness = np.asarray(fitness, np.float64)
    kept = kept_members(fitness, antithetic)
    weights = np.zeros_like(fitness)
    if not kept.any():
        return weights, kept
    values = fitness[kept]
    centered = values - (0 if baseline == "none" else values.mean() if baseline == "mean" else float(baseline))
    if shaping == "centered-rank":
        centered = centered_ranks(values)
    elif shaping == "zscore":
        # Equal fitness has no deviation, and no direction either.
        centered = centered / (values.std() or 1)
    elif shaping == "sign" and antithetic:
        better = np.sign(values[0::2] - values[1::2])
        centered = np.stack([better, -better], axis=1).reshape(-1)
    elif shaping == "sign":
        centered = np.sign(centered)
    weights[kept] = centered
    return weights, kept


@dataclass(frozen=True)
class Report:
    """What one step did."""

    step: int
    """Counted from 0."""
    fitness_mean: float
    """Over the members with a finite fitness, as the other two; NaN if there is none."""
    fitness_max: float
    fitness_std: float
    evaluations: int
    """Members evaluated in this step."""
    non_finite: int
    """Members whose fitness was infinite or not a number."""
    dropped: int
    """Those and, with antithetic pairs, their twins: left out of the update. All, where their sum is not finite."""
    update_norm: float
    """Euclidean norm of the change of all parameters."""
    cosine: float
    """Of this change to the one before; NaN where there is none or one of them is zero."""
    evaluations_per_second: float
    """From the first evaluation of the step to the end of the update."""
    vectorised: bool
    """Whether everything ran under mx.vmap; otherwise members were evaluated one after the other."""
    floats_per_member: int
    """Floats of a member's noise, were it sent: r (m + n) for a low-rank matrix. (The seed would do, and is one.)"""
    floats_per_member_full: int
    """The same for noise of full rank: m n for a matrix."""


class EggRoll:
    """Evolution strategies for a model, used like one of mlx.optimizers, but in need of fitness only.

    `step` does everything. In parts, for a fitness that comes from elsewhere, it is

        outputs = eggroll.evaluate(lambda model, x: model(x), x)      # (N, ...): what every member says
        report = eggroll.update(fitness)                              # (N,), in the order of the members

    Layers that are exactly nn.Linear or nn.Embedding run with low-rank factors for the whole population at once. A
    leaf of any other layer with two or more axes is perturbed with low-rank noise as well (first axis by the
    rest), but each member's sum is formed in memory, as it is for plain parameter trees and for noise "full". An
    objective that reads a Linear's `weight` itself sees it without the perturbation.

    Attributes:
        model: the module, updated in place, or the current parameter tree.
        steps: updates done so far; together with seed it determines the noise.
        optimizer: what turns the estimated gradient into a change; its state is where MLX keeps it.
    """

    def __init__(
        self,
        model: nn.Module | Tree,
        population: int,
        sigma: float,
        learning_rate: float | Callable[[mx.array], mx.array] | None = None,
        rank: int = 1,
        *,
        antithetic: bool = True,
        baseline: Literal["none", "mean"] | float = "mean",
        fitness_shaping: Shaping = "none",
        noise: NoiseKind = "lowrank",
        optimizer: optim.Optimizer | None = None,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        """
        Args:
            model: what is evolved: the trainable parameters of a module, or a tree of floating point arrays.
            population: N, members evaluated in a step; even if antithetic.
            sigma: standard deviation of a parameter's perturbation.
            learning_rate: of plain gradient ascent, a number or an MLX schedule. Not with `optimizer`.
            rank: r of the noise of a matrix.
            antithetic: members come in pairs, mu + sigma E and mu - sigma E, neighbours in every population axis.
            baseline: subtracted from the fitness: "none", "mean" or a number.
            fitness_shaping: "none", "centered-rank", "zscore" or "sign"; see `shape_fitness`.
            noise: "lowrank" (EGGROLL) or "full" (plain evolution strategies, with the same interface).
            optimizer: any of mlx.optimizers, instead of plain ascent; it is given minus the estimate of Eq. 8.
            seed: in [0, 2^64).
            chunk: members evaluated at a time, to bound memory; all by default. Even if antithetic.

        Raises:
            InputError: (a ValueError) an argument out of range, or a model whose parameters cannot be perturbed.
        """
        self.model = model
        self.population = population
        self.sigma = sigma
        self.rank = rank
        self.antithetic = antithetic
        self.baseline = baseline
        self.fitness_shaping: Shaping = fitness_shaping
        self.noise_kind: NoiseKind = noise
        self.seed = seed
        self.chunk = population if chunk is None else chunk
        self.steps = 0
        self._previous_change: dict[str, mx.array] = {}
        self._started: float | None = None
        self._vectorised = True
        self._check_settings()
        self._check_leaves()
        if learning_rate is not None and optimizer is None:
            optimizer = optim.SGD(learning_rate)
        elif learning_rate is not None or optimizer is None:
            raise InputError("Either learning_rate or optimizer must be given, and not both.")
        self.optimizer = optimizer

    def _check_settings(self) -> None:
        """Every setting against what is allowed."""
        pairs, baseline = self.antithetic, self.baseline
        rules = (
            (self.population >= 1, "population", self.population, "at least 1"),
            (not (pairs and self.population % 2), "population", self.population, "even, for antithetic pairs"),
            (0 < self.sigma < math.inf, "sigma", self.sigma, "a positive number"),
            (self.rank >= 1, "rank", self.rank, "at least 1"),
            (
                baseline in ("none", "mean") if isinstance(baseline, str) else math.isfinite(baseline),
                "baseline",
                baseline,
                "'none', 'mean' or a number",
            ),
            (
                self.fitness_shaping in get_args(Shaping),
                "fitness_shaping",
                self.fitness_shaping,
                f"one of {', '.join(get_args(Shaping))}",
            ),
            (
                self.noise_kind in get_args(NoiseKind),
                "noise",
                self.noise_kind,
                f"one of {', '.join(get_args(NoiseKind))}",
            ),
            (0 <= self.seed < 1 << 64, "seed", self.seed, "in [0, 2^64)"),
            (self.chunk >= 1, "chunk", self.chunk, "at least 1"),
            (not (pairs and self.chunk % 2), "chunk", self.chunk, "even, for antithetic pairs"),
        )
        for holds, name, value, allowed in rules:
            if not holds:
                raise InputError(f"{name} is {value!r}, but it must be {allowed}.")

    def _check_leaves(self) -> None:
        """That every parameter can be perturbed, once."""
        leaves = self.parameters()
        if not leaves:
            raise InputError("The model has no trainable parameters.")
        first_name: dict[int, str] = {}
        for name, leaf in leaves.items():
            if not (isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)):
                raise InputError(f"Parameter {name} is not an array of floats: freeze it or leave it out.")
            first = first_name.setdefault(id(leaf), name)
            if first != name:
                raise InputError(
                    f"Parameters {first} and {name} are one array, which would be perturbed twice: copy it, or keep "
                    "its layer in one place (for tied embeddings there is nn.Embedding.as_linear)."
                )

    def _trainable(self) -> Tree:
        return self.model.trainable_parameters() if isinstance(self.model, nn.Module) else self.model

    def parameters(self) -> dict[str, mx.array]:
        """Name -> trainable array: the mean mu of the population."""
        return flat(self._trainable())

    def noise(self, draws: range | None = None, step: int | None = None) -> Noise:
        """The noise of a step, always the same for the same seed, step, draw and leaf.

        Args:
            draws: which; draw k is member k's or, with antithetic pairs, that of members 2 k (+) and 2 k + 1 (-). All
                by default.
            step: the current one by default.

        Returns:
            Leaf name -> LowRank or dense array, with a leading axis over the draws.
        """
        draws = range(self.population // (2 if self.antithetic else 1)) if draws is None else draws
        step = self.steps if step is None else step
        rank = self.rank if self.noise_kind == "lowrank" else None
        # In the order of the names, so that the order in which a model happens to hold its layers does not matter.
        return {
            name: draw(draw_keys(self.seed, step, number, draws), leaf.shape, rank)
            for number, (name, leaf) in enumerate(sorted(self.parameters().items()))
        }

    def perturbations(self, members: range) -> Noise:
        """sigma E of the given members in this step, in each parameter's dtype; A B^T where it is low-rank.

        Args:
            members: from an even number to an even number with antithetic pairs.
        """
        half = 2 if self.antithetic else 1
        noise = self.noise(range(members.start // half, members.stop // half))
        dtypes = {name: leaf.dtype for name, leaf in self.parameters().items()}
        deltas: Noise = {}
        for name, E in noise.items():
            delta = members_of(E, self.sigma, self.antithetic)
            dtype = dtypes[name]
            deltas[name] = (
                LowRank(*(x.astype(dtype) for x in delta)) if isinstance(delta, LowRank) else delta.astype(dtype)
            )
        return deltas

    def member(self, index: int) -> Tree:
        """The parameters of one member of this step, formed in full: to look at, to save, to test against."""
        if not 0 <= index < self.population:
            raise InputError(f"Member {index} is not in a population of {self.population}.")
        first = index - index % 2 if self.antithetic else index
        deltas = self.perturbations(range(first, first + (2 if self.antithetic else 1)))
        return tree_unflatten(
            [
                (name, leaf + dense(_take(deltas[name], index - first), leaf.shape))
                for name, leaf in self.parameters().items()
            ]
        )

    def evaluate(self, objective: Callable[..., Any], *inputs: Any, in_axes: Any = None) -> Any:
        """objective(model, *inputs) for every member, under mx.vmap if it can be.

        Args:
            objective: any function of the model (of the parameter tree, if that is what is evolved) and the inputs. One
                that mx.vmap cannot run, since it calls .item() or leaves MLX, is called member by member. Random
                numbers that it draws are the same for all members under mx.vmap.
            inputs: arrays or trees of arrays.
            in_axes: None where all members get the same input; 0 where the input has a leading axis of N members. One
                for all inputs, or a tuple with one for each.

        Returns:
            The objective's output, an array or a tree of arrays, each with a leading axis of N.
        """
        if self._started is None:
            self._started, self._vectorised = time.perf_counter(), True
        axes = tuple(in_axes) if isinstance(in_axes, tuple | list) else (in_axes,) * len(inputs)
        if len(axes) != len(inputs) or not all(axis in (None, 0) for axis in axes):
            raise InputError(f"in_axes is {in_axes!r}, but it must be None or 0, or a tuple of {len(inputs)} of them.")
        mapped = [number for number, axis in enumerate(axes) if axis == 0]
        members_inputs = [tree_map(mx.array, inputs[number]) for number in mapped]
        if not all(x.ndim and len(x) == self.population for x in flat(members_inputs).values()):
            raise InputError(f"An input with in_axes 0 has no leading axis of {self.population} members.")

        def run(deltas: Noise, *of_member: Any) -> Any:
            values = list(inputs)
            for number, value in zip(mapped, of_member, strict=True):
                values[number] = value
            if isinstance(self.model, nn.Module):
                with perturbed(self.model, deltas):
                    return objective(self.model, *values)
            summed = [(name, leaf + dense(deltas[name], leaf.shape)) for name, leaf in self.parameters().items()]
            return objective(tree_unflatten(summed), *values)

        parts = []
        for first in range(0, self.population, self.chunk):
            members = range(first, min(first + self.chunk, self.population))
            part = self._each(run, [self.perturbations(members), *_take(members_inputs, members)], len(members))
            mx.eval(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else tree_map(lambda *part: mx.concatenate(list(part)), *parts)

    def _each(self, function: Callable[..., Any], inputs: list[Any], count: int) -> Any:
        """The function under mx.vmap, or if that is not possible of one member after the other, stacked."""
        try:
            return mx.vmap(function)(*inputs)
        except Exception:
            # Whatever it was: if it is the caller's own mistake, the plain call below raises it in plain words.
            self._vectorised = False
        each = [function(*_take(inputs, index)) for index in range(count)]
        return tree_map(lambda *values: mx.stack([mx.array(value) for value in values]), *each)

    def score(self, fitness: Callable[[Any], Any], outputs: Any) -> mx.array:
        """fitness(output) of each member: (N,). Any Python will do; what mx.vmap can run, it runs.

        Args:
            fitness: from one member's output to one number, the higher the better.
            outputs: as `evaluate` returns them, with a leading axis of N.
        """
        return self._each(fitness, [outputs], self.population)

    def update(self, fitness: mx.array | np.ndarray | Sequence[float]) -> Report:
        """Moves the model: mu <- mu + learning_rate / (N sigma) sum_i f_i E_i, with N the members that were kept.

        Args:
            fitness: (N,), of the members of this step in order, the higher the better.

        Raises:
            InputError: a fitness that is not one number for each member.
        """
        started = time.perf_counter() if self._started is None else self._started
        # float32 on the way, since NumPy has no bfloat16.
        values = np.array(fitness.astype(mx.float32) if isinstance(fitness, mx.array) else fitness, np.float64)
        if values.shape != (self.population,):
            needed = f"one number for each of {self.population} members"
            raise InputError(f"The fitness has shape {values.shape}, but it must be {needed}.")
        weights, kept = shape_fitness(values, self.fitness_shaping, self.baseline, self.antithetic)
        before = self.parameters()
        gradients = {name: -g.astype(before[name].dtype) for name, g in self.estimate(weights, kept.sum()).items()}
        # A fitness may be finite and its sum beyond the parameters' type: then all members are dropped.
        kept &= all(np.array([mx.all(mx.isfinite(g)) for g in gradients.values()]))
        if kept.any():
            tree = tree_unflatten(list(gradients.items()))
            if isinstance(self.model, nn.Module):
                self.optimizer.update(self.model, tree)
            else:
                self.model = self.optimizer.apply_gradients(tree, self.model)
        after = self.parameters()
        change = {name: (after[name] - before[name]).astype(mx.float32) for name in before}
        mx.eval(after, self.optimizer.state)
        norm = math.sqrt(_inner(change, change))
        inner = _inner(change, self._previous_change) if self._previous_change else 0.0
        lengths = norm * math.sqrt(_inner(self._previous_change, self._previous_change))
        finite = values[np.isfinite(values)]
        lowrank = self.noise_kind == "lowrank"
        floats = [
            self.rank * sum(matrix_shape(leaf.shape)) if lowrank and leaf.ndim >= 2 else leaf.size
            for leaf in before.values()
        ]
        report = Report(
            step=self.steps,
            fitness_mean=float(finite.mean()) if len(finite) else math.nan,
            fitness_max=float(finite.max()) if len(finite) else math.nan,
            fitness_std=float(finite.std()) if len(finite) else math.nan,
            evaluations=self.population,
            non_finite=self.population - len(finite),
            dropped=int((~kept).sum()),
            update_norm=norm,
            cosine=inner / lengths if lengths else math.nan,
            evaluations_per_second=self.population / (time.perf_counter() - started),
            vectorised=self._vectorised,
            floats_per_member=sum(floats),
            floats_per_member_full=sum(leaf.size for leaf in before.values()),
        )
        self._previous_change, self._started = change, None
        self.steps += 1
        return report

    def estimate(self, weights: np.ndarray, count: int | None = None) -> dict[str, mx.array]:
        """1 / (count sigma) sum_i w_i E_i: the estimate of the gradient of the smoothed fitness, one product a leaf.

        Args:
            weights: (N,), of the members of this step.
            count: N by default.

        Returns:
            Leaf name -> float32 of the leaf's shape.
        """
        # Twins share a draw, with opposite signs.
        signed = weights[0::2] - weights[1::2] if self.antithetic else weights
        count = self.population if count is None else max(int(count), 1)
        with np.errstate(over="ignore"):
            signed = mx.array((signed / (count * self.sigma)).astype(np.float32))
        width = self.chunk // 2 if self.antithetic else self.chunk
        shapes = {name: leaf.shape for name, leaf in self.parameters().items()}
        total: dict[str, mx.array] = {}
        for first in range(0, len(signed), width):
            draws = range(first, min(first + width, len(signed)))
            for name, E in self.noise(draws).items():
                part = weighted_sum(E, signed[draws.start : draws.stop], shapes[name])
                total[name] = total[name] + part if name in total else part
            mx.eval(total)
        return total

    def step(
        self,
        objective: Callable[..., Any],
        *inputs: Any,
        fitness: Callable[[Any], Any] | None = None,
        in_axes: Any = None,
    ) -> Report:
        """Evaluates the population and moves the model.

        Args:
            objective: as for `evaluate`; its output is the fitness, the higher the better, or what `fitness` judges.
            fitness: as for `score`.
            inputs, in_axes: as for `evaluate`.
        """
        outputs = self.evaluate(objective, *inputs, in_axes=in_axes)
        return self.update(outputs if fitness is None else self.score(fitness, outputs))


def flat(tree: Tree) -> dict[str, mx.array]:
    """Name -> array of a parameter tree, names joined by dots."""
    return dict(tree_flatten(tree))


def _take(value: Any, index: int | range) -> Any:
    """One entry, or some in a row, of the leading axis of every array in a tree."""
    where = slice(index.start, index.stop) if isinstance(index, range) else index
    return tree_map(lambda x: x[where], value)


def _inner(a: dict[str, mx.array], b: dict[str, mx.array]) -> float:
    """The inner product of two parameter trees."""
    return sum(np.array([mx.sum(a[name] * b[name]) for name in a]).tolist())
