"""EGGROLL on a small nn.Module: two classes of points, with accuracy as the fitness.

    python examples/eggroll_module.py

Accuracy is a step function of the parameters: its gradient is zero, so backpropagation cannot learn from it. EGGROLL
needs only its values.
"""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from nanoegg_mlx.eggroll import EggRoll


def points_and_classes(count: int, seed: int) -> tuple[mx.array, mx.array]:
    """Points in a square, float32 (count, 2), and whether each lies in a disc, int32 (count,)."""
    x = mx.random.uniform(-1, 1, (count, 2), key=mx.random.key(seed))
    return x, (mx.sum(x * x, axis=1) < 0.6).astype(mx.int32)


def accuracy(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    """The share of points whose largest output belongs to their class."""
    return mx.mean(mx.argmax(model(x), axis=-1) == y)


def main() -> None:
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    train, test = points_and_classes(512, seed=1), points_and_classes(2048, seed=2)
    # Any MLX optimizer; learning_rate=0.5 in its place is plain gradient ascent.
    optimizer = optim.Adam(learning_rate=0.05)
    # Ranks make an update independent of the scale of the fitness.
    eggroll = EggRoll(model, population=128, sigma=0.2, optimizer=optimizer, fitness_shaping="centered-rank")
    print(f"start: test accuracy {accuracy(model, *test).item():.3f}")
    for step in range(1, 101):
        report = eggroll.step(accuracy, *train)
        if step % 20 == 0:
            print(
                f"step {step}: accuracy of the members {report.fitness_mean:.3f}, best {report.fitness_max:.3f}; "
                f"test accuracy {accuracy(model, *test).item():.3f}"
            )


if __name__ == "__main__":
    main()
