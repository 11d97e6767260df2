"""Small neural networks: dense layers, gradients of their losses, and the steps that train them.

Networks have tanh between layers. A unit of a rectified layer can be active for a single person, and the sum of its
gradients is then that person's row; a tanh unit is active for everybody.

torch differentiates, in float64. It is imported where it is used: it takes seconds, and statistics need none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harmonization.core.protocol import Array

if TYPE_CHECKING:
    from torch import Tensor

Weights = dict[str, Array]
"""Name → array. Leading axes, where there are any, hold networks that are trained side by side."""
Leaves = dict[str, "Tensor"]
"""The same as tensors, which losses are differentiated by."""
Losses = tuple["Tensor", ...]
"""Their sum is minimised, the first is reported."""
Layout = dict[str, tuple[int, ...]]
"""Name → shape without the leading axes: how weights lie one behind the other in a vector [w]."""


def size_of(layout: Layout) -> int:
    """Number of weights, w."""
    return sum(int(np.prod(shape)) for shape in layout.values())


def pack(weights: Mapping[str, Array], layout: Layout) -> Array:
    """Lay weights one behind the other: [..., w]."""
    flat = []
    for name, shape in layout.items():
        leading = weights[name].shape[: weights[name].ndim - len(shape)]
        flat.append(weights[name].reshape(*leading, int(np.prod(shape))))
    return np.concatenate(flat, axis=-1)


def unpack(vector: Array, layout: Layout) -> Weights:
    """Find the weights in a vector [..., w]: the inverse of `pack`."""
    weights: Weights = {}
    start = 0
    for name, shape in layout.items():
        end = start + int(np.prod(shape))
        weights[name] = vector[..., start:end].reshape(*vector.shape[:-1], *shape)
        start = end
    return weights


def draw_weights(layout: Layout, seed: int) -> Weights:
    """Draw initial weights from a public seed: matrices as Glorot & Bengio (AISTATS 2010), vectors 0."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for name, shape in layout.items():
        if len(shape) < 2:
            weights[name] = np.zeros(shape)
        else:
            reach = np.sqrt(6 / max(shape[-2] + shape[-1], 1))
            weights[name] = rng.uniform(-reach, reach, shape)
    return weights


@dataclass(frozen=True)
class Network:
    """Dense layers with tanh between them; the last is linear.

    Parameters
    ----------
    name : str
        Prefix of the names of its weights.
    sizes : tuple of int
        Width of the input, of each hidden layer, and of the output.
    """

    name: str
    sizes: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        """A weight [in, out] and a bias [out] for each layer."""
        layout: Layout = {}
        for layer, (width, following) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            layout[f"{self.name}.{layer}.weight"] = (width, following)
            layout[f"{self.name}.{layer}.bias"] = (following,)
        return layout

    def __call__(self, weights: Leaves, inputs: Tensor) -> Tensor:
        """Return the output [..., n, out] for inputs [..., n, in]."""
        for layer in range(len(self.sizes) - 1):
            values = inputs.tanh() if layer else inputs
            inputs = values @ weights[f"{self.name}.{layer}.weight"] + weights[f"{self.name}.{layer}.bias"].unsqueeze(
                -2
            )
        return inputs


def tensor(values: Array) -> Tensor:
    """Return the same numbers as a tensor, float64."""
    import torch

    return torch.tensor(values, dtype=torch.float64)


def evaluate(function: Callable[..., Tensor], weights: Weights, *inputs: Array) -> Array:
    """Return what a function of weights and inputs gives, on one thread."""
    with _one_thread():
        leaves = {name: tensor(values) for name, values in weights.items()}
        found: Array = function(leaves, *map(tensor, inputs)).numpy()
    return found


def differentiate(losses: Callable[[Leaves], Losses], weights: Weights) -> tuple[float, Weights]:
    """Return the first loss, and the gradient of the sum of all losses.

    Weights that no loss depends on have a gradient of 0. On one thread, as sums over several come out differently in
    their last digits.
    """
    import torch

    leaves = {name: tensor(values).requires_grad_() for name, values in weights.items()}
    with _one_thread():
        found = losses(leaves)
        total = torch.stack([*found, *(0 * leaf.sum() for leaf in leaves.values())]).sum()
        slopes = torch.autograd.grad(total, list(leaves.values()))
    return found[0].item(), {name: slope.numpy() for name, slope in zip(leaves, slopes, strict=True)}


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def adam_step(
    weights: Array, gradient: Array, memory: tuple[Array, Array], number: int, rate: float, decay: float = 0.0
) -> tuple[Array, tuple[Array, Array]]:
    """Take one step of Adam (Kingma & Ba, ICLR 2015) with decoupled weight decay (Loshchilov & Hutter, ICLR 2019).

    Its memory are running means of the gradient and of its square, zeros at first. Steps are numbered from 1; `decay`
    is the share of the weights, in units of the rate, that a step takes away. Returns the weights and the memory after
    it.
    """
    first = 0.9 * memory[0] + 0.1 * gradient
    second = 0.999 * memory[1] + 0.001 * gradient**2
    direction = (first / (1 - 0.9**number)) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
    return weights - rate * (direction + decay * weights), (first, second)
