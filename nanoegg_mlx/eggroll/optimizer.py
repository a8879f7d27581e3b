"""The optimizer: evaluates a population around a model's parameters and moves them towards the fitter members."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from nanoegg_mlx.eggroll.checks import check_parameters, check_settings, fitness_values, mapped_positions
from nanoegg_mlx.eggroll.layers import perturbed
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
from nanoegg_mlx.eggroll.shaping import Baseline, Shaping, shape_fitness
from nanoegg_mlx.eggroll.trees import Tree, flat, inner, take
from nanoegg_mlx.errors import InputError


@dataclass(frozen=True)
class Report:
    """The figures of one step."""

    step: int
    """Counted from 0."""
    fitness_mean: float
    """Mean, like maximum and standard deviation, over the members with a finite fitness; NaN if there is none."""
    fitness_max: float
    fitness_std: float
    evaluations: int
    """Members evaluated in this step."""
    non_finite: int
    """Members whose fitness was infinite or not a number."""
    dropped: int
    """Those members and, with antithetic pairs, their twins: left out of the update. All, if the sum is not finite."""
    update_norm: float
    """Euclidean norm of the change of all parameters."""
    cosine: float
    """Cosine of this change and the previous one; NaN if there is none or one of them is zero."""
    evaluations_per_second: float
    """From the first evaluation of the step to the end of the update."""
    vectorised: bool
    """Whether everything ran under mx.vmap; otherwise members were evaluated one by one."""
    floats_per_member: int
    """Size of a member's noise, if it had to be sent: r (m + n) for a low-rank matrix. (The seed is enough.)"""
    floats_per_member_full: int
    """The same for noise of full rank: m n for a matrix."""


class EggRoll:
    """Evolution strategies for a model: an optimizer like those of mlx.optimizers that needs the fitness only.

    `step` does everything. For a fitness that is computed elsewhere, use its two halves:

        outputs = eggroll.evaluate(lambda model, x: model(x), x)      # (N, ...): the output of each member
        report = eggroll.update(fitness)                              # (N,), in the order of the members

    Layers that are exactly nn.Linear or nn.Embedding run with low-rank factors for the whole population at once. A leaf
    of any other layer with two or more axes gets low-rank noise as well (the first axis by the rest), but the sum is
    formed in memory for each member; so it is for plain parameter trees and for noise "full". An objective that reads
    the `weight` of an nn.Linear directly gets it without the perturbation.

    Args:
        model: the trainable parameters of a module, or a tree of floating point arrays.
        population: N, members evaluated in a step; even if antithetic.
        sigma: standard deviation of a parameter's perturbation.
        learning_rate: of plain gradient ascent: a number or an MLX schedule. Not together with `optimizer`.
        rank: r of the noise of a matrix.
        antithetic: members are pairs, mu + sigma E and mu - sigma E, neighbours in every population axis.
        baseline: subtracted from the fitness: "none", "mean" or a number.
        fitness_shaping: "none", "centered-rank", "zscore" or "sign"; see `shape_fitness`.
        noise: "lowrank" (EGGROLL) or "full" (plain evolution strategies, with the same interface).
        optimizer: any of mlx.optimizers, instead of plain ascent. Its gradient is minus the estimate of Eq. 8.
        seed: in [0, 2^64).
        chunk: members evaluated at a time, to bound memory; all by default. Even if antithetic.

    Attributes:
        model: the module, updated in place, or the current parameter tree.
        steps: updates done so far; together with the seed it determines the noise.
        optimizer: turns the estimated gradient into a change and holds its own state, as in MLX.

    Raises:
        InputError: (a ValueError) an argument out of range, or a model whose parameters cannot be perturbed.
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
        baseline: Baseline = "mean",
        fitness_shaping: Shaping = "none",
        noise: NoiseKind = "lowrank",
        optimizer: optim.Optimizer | None = None,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        chunk = population if chunk is None else chunk
        check_settings(
            population=population, sigma=sigma, rank=rank, antithetic=antithetic, baseline=baseline,
            fitness_shaping=fitness_shaping, noise=noise, seed=seed, chunk=chunk,
        )  # fmt: skip
        self.model = model
        self.population, self.sigma, self.rank, self.antithetic = population, sigma, rank, antithetic
        self.baseline: Baseline = baseline
        self.fitness_shaping: Shaping = fitness_shaping
        self.noise_kind: NoiseKind = noise
        self.seed, self.chunk, self.steps = seed, chunk, 0
        check_parameters(self.parameters())
        if learning_rate is not None and optimizer is None:
            optimizer = optim.SGD(learning_rate)
        elif learning_rate is not None or optimizer is None:
            which = "None" if optimizer is None else "given"
            raise InputError(f"learning_rate and optimizer are both {which}; exactly one must be given.")
        self.optimizer = optimizer
        self._last_change: dict[str, mx.array] = {}
        self._last_norm = 0.0
        self._started: float | None = None
        self._vectorised = True

    def parameters(self) -> dict[str, mx.array]:
        """Name -> trainable array: the mean mu of the population."""
        return flat(self.model.trainable_parameters() if isinstance(self.model, nn.Module) else self.model)

    def noise(self, draws: range | None = None, step: int | None = None) -> Noise:
        """The noise of a step: a function of seed, step, draw and leaf.

        Args:
            draws: the draws, all by default. Draw k belongs to member k or, with antithetic pairs, to members 2 k (+)
                and 2 k + 1 (-).
            step: the current one by default.

        Returns:
            Leaf name -> LowRank or dense array, with a leading axis over the draws.
        """
        draws = range(self.population // (2 if self.antithetic else 1)) if draws is None else draws
        step = self.steps if step is None else step
        rank = self.rank if self.noise_kind == "lowrank" else None
        # Leaves are numbered in the order of their names: the order in which a model holds its layers does not matter.
        return {
            name: draw(draw_keys(self.seed, step, number, draws), leaf.shape, rank)
            for number, (name, leaf) in enumerate(sorted(self.parameters().items()))
        }

    def perturbations(self, members: range) -> Noise:
        """sigma E of the given members in this step, in each parameter's dtype; A B^T if it is low-rank.

        Args:
            members: with antithetic pairs, from an even number to an even number.
        """
        of_draw = 2 if self.antithetic else 1
        noise = self.noise(range(members.start // of_draw, members.stop // of_draw))
        parameters = self.parameters()
        deltas: Noise = {}
        for name, E in noise.items():
            delta, dtype = members_of(E, self.sigma, self.antithetic), parameters[name].dtype
            deltas[name] = (
                LowRank(*(x.astype(dtype) for x in delta)) if isinstance(delta, LowRank) else delta.astype(dtype)
            )
        return deltas

    def member(self, index: int) -> Tree:
        """The parameters of one member of this step, formed in full: to inspect, to save, to test with."""
        if not 0 <= index < self.population:
            raise InputError(f"The member is {index}; it must be from 0 to {self.population - 1}.")
        # Perturbations come in whole pairs.
        first = index - index % 2 if self.antithetic else index
        deltas = self.perturbations(range(first, first + (2 if self.antithetic else 1)))
        return self._summed(take(deltas, index - first))

    def _summed(self, deltas: Noise) -> Tree:
        """Parameters plus one member's perturbation, as a tree."""
        return tree_unflatten(
            [(name, leaf + dense(deltas[name], leaf.shape)) for name, leaf in self.parameters().items()]
        )

    def evaluate(self, objective: Callable[..., Any], *inputs: Any, in_axes: Any = None) -> Any:
        """objective(model, *inputs) for every member, under mx.vmap if possible.

        Args:
            objective: any function of the model (of the parameter tree, if that is evolved) and the inputs. If mx.vmap
                cannot run it, because it calls .item() or leaves MLX, it is called member by member. Random numbers
                that it draws are the same for all members under mx.vmap.
            inputs: arrays or trees of arrays.
            in_axes: None if all members get the same input; 0 if the input has a leading axis of N members. One for
                all inputs, or a tuple with one for each.

        Returns:
            The objective's output, an array or a tree of arrays, each with a leading axis of N.
        """
        mapped = mapped_positions(inputs, in_axes, self.population)
        own_inputs = [tree_map(mx.array, inputs[position]) for position in mapped]
        if self._started is None:
            self._started, self._vectorised = time.perf_counter(), True

        def of_member(deltas: Noise, *own: Any) -> Any:
            values = list(inputs)
            for position, value in zip(mapped, own, strict=True):
                values[position] = value
            if isinstance(self.model, nn.Module):
                with perturbed(self.model, deltas):
                    return objective(self.model, *values)
            return objective(self._summed(deltas), *values)

        parts = []
        for first in range(0, self.population, self.chunk):
            members = range(first, min(first + self.chunk, self.population))
            part = self._each(of_member, [self.perturbations(members), *take(own_inputs, members)], len(members))
            # A chunk is evaluated before the next one is built: memory holds the noise of one chunk.
            mx.eval(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else tree_map(lambda *part: mx.concatenate(list(part)), *parts)

    def _each(self, function: Callable[..., Any], inputs: list[Any], count: int) -> Any:
        """The function under mx.vmap or, if that is not possible, of one member after the other, stacked."""
        try:
            return mx.vmap(function)(*inputs)
        except Exception:
            # Any exception: if it is the caller's own mistake, the plain call below raises it with a plain traceback.
            self._vectorised = False
        each = [function(*take(inputs, index)) for index in range(count)]
        return tree_map(lambda *values: mx.stack([mx.array(value) for value in values]), *each)

    def score(self, fitness: Callable[[Any], Any], outputs: Any) -> mx.array:
        """fitness(output) of each member: (N,). Any Python function; it runs under mx.vmap if possible.

        Args:
            fitness: from one member's output to one number; higher is better.
            outputs: as `evaluate` returns them, with a leading axis of N.
        """
        return self._each(fitness, [outputs], self.population)

    def update(self, fitness: mx.array | np.ndarray | Sequence[float]) -> Report:
        """Moves the model: mu <- mu + learning_rate / (N sigma) sum_i f_i E_i, with N the number of kept members.

        Args:
            fitness: (N,), of the members of this step in order; higher is better.

        Raises:
            InputError: the fitness is not one number for each member.
        """
        started = time.perf_counter() if self._started is None else self._started
        values = fitness_values(fitness, self.population)
        weights, kept = shape_fitness(values, self.fitness_shaping, self.baseline, self.antithetic)
        before = self.parameters()
        # An MLX optimizer descends, so it gets minus the estimate.
        gradients = {name: -g.astype(before[name].dtype) for name, g in self.estimate(weights, kept.sum()).items()}
        # Finite fitness may have a sum beyond the parameters' type. Then all members are dropped.
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
        report = self._report(values, kept, change, started)
        self._last_change, self._last_norm, self._started = change, report.update_norm, None
        self.steps += 1
        return report

    def _report(self, fitness: np.ndarray, kept: np.ndarray, change: dict[str, mx.array], started: float) -> Report:
        """The report of a step from its fitness (N,), kept members (N,), change of parameters and starting time."""
        norm = math.sqrt(inner(change, change))
        lengths = norm * self._last_norm
        finite = fitness[np.isfinite(fitness)]
        lowrank = self.noise_kind == "lowrank"
        floats = [
            self.rank * sum(matrix_shape(leaf.shape)) if lowrank and leaf.ndim >= 2 else leaf.size
            for leaf in change.values()
        ]
        return Report(
            step=self.steps,
            fitness_mean=float(finite.mean()) if len(finite) else math.nan,
            fitness_max=float(finite.max()) if len(finite) else math.nan,
            fitness_std=float(finite.std()) if len(finite) else math.nan,
            evaluations=self.population,
            non_finite=self.population - len(finite),
            dropped=int((~kept).sum()),
            update_norm=norm,
            cosine=inner(change, self._last_change) / lengths if lengths else math.nan,
            evaluations_per_second=self.population / (time.perf_counter() - started),
            vectorised=self._vectorised,
            floats_per_member=sum(floats),
            floats_per_member_full=sum(leaf.size for leaf in change.values()),
        )

    def estimate(self, weights: np.ndarray, count: int | None = None) -> dict[str, mx.array]:
        """1 / (count sigma) sum_i w_i E_i: the estimated gradient of the smoothed fitness, one product for each leaf.

        Args:
            weights: (N,), of the members of this step.
            count: N by default.

        Returns:
            Leaf name -> float32 of the leaf's shape.
        """
        # Antithetic twins share a draw with opposite signs: w_+ E + w_- (-E) = (w_+ - w_-) E.
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
            objective: as for `evaluate`; its output is the fitness (higher is better), or the input of `fitness`.
            fitness: as for `score`.
            inputs, in_axes: as for `evaluate`.
        """
        outputs = self.evaluate(objective, *inputs, in_axes=in_axes)
        return self.update(outputs if fitness is None else self.score(fitness, outputs))
