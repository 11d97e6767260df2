"""Small neural networks: dense layers, their gradients, and the steps that train them.

Networks have tanh between layers. A unit of a rectified layer can be active for a single person, and the sum of its
gradients is then that person's row; a tanh unit is active for everybody.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from harmonization.core.protocol import Array

Weights = dict[str, Array]
"""Name → array. Leading axes, where there are any, hold networks that are trained side by side."""
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

    def forward(self, weights: Weights, inputs: Array) -> list[Array]:
        """Return the input [..., n, in], the values of each hidden layer, and the output [..., n, out]."""
        values = [inputs]
        last = len(self.sizes) - 2
        for layer in range(last + 1):
            weight, bias = weights[f"{self.name}.{layer}.weight"], weights[f"{self.name}.{layer}.bias"]
            linear = values[-1] @ weight + bias[..., None, :]
            values.append(linear if layer == last else np.tanh(linear))
        return values

    def backward(self, weights: Weights, values: list[Array], gradient: Array) -> tuple[Weights, Array]:
        """Carry the gradient of a loss back through the network.

        Parameters
        ----------
        weights : dict
            As in `forward`.
        values : list of numpy.ndarray
            What `forward` returned.
        gradient : numpy.ndarray
            [..., n, out], of the loss with respect to the output.

        Returns
        -------
        dict
            Gradients of the weights, summed over the n rows.
        numpy.ndarray
            [..., n, in], gradient with respect to the input.
        """
        gradients: Weights = {}
        for layer in reversed(range(len(self.sizes) - 1)):
            gradients[f"{self.name}.{layer}.weight"] = values[layer].swapaxes(-1, -2) @ gradient
            gradients[f"{self.name}.{layer}.bias"] = gradient.sum(axis=-2)
            gradient = gradient @ weights[f"{self.name}.{layer}.weight"].swapaxes(-1, -2)
            if layer > 0:
                gradient = gradient * (1 - values[layer] ** 2)
        return gradients, gradient


def softmax_cross_entropy(scores: Array, target: Array) -> tuple[Array, Array]:
    """Loss of each row [..., n], and its gradient [..., n, C], for scores and one-hot targets [..., n, C]."""
    logarithms = log_softmax(scores, axis=-1)
    loss: Array = -(target * logarithms).sum(axis=-1)
    return loss, np.exp(logarithms) * target.sum(axis=-1, keepdims=True) - target


def adam_step(
    weights: Array, gradient: Array, memory: tuple[Array, Array], number: int, rate: float, decay: float = 0.0
) -> tuple[Array, tuple[Array, Array]]:
    """Take one step of Adam (Kingma & Ba, ICLR 2015) with decoupled weight decay (Loshchilov & Hutter, ICLR 2019).

    Parameters
    ----------
    weights, gradient : numpy.ndarray
        Of one shape.
    memory : tuple of numpy.ndarray
        Running means of the gradient and of its square; zeros at first.
    number : int
        Of this step, from 1.
    rate, decay : float
        Learning rate; share of the weights, in units of the rate, that a step takes away.

    Returns
    -------
    numpy.ndarray, tuple of numpy.ndarray
        The weights and the memory after the step.
    """
    first = 0.9 * memory[0] + 0.1 * gradient
    second = 0.999 * memory[1] + 0.001 * gradient**2
    direction = (first / (1 - 0.9**number)) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
    return weights - rate * (direction + decay * weights), (first, second)
