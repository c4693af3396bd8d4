"""Handwritten digits that scikit-learn ships (1797 images, 8 x 8), and what the examples share: training, accuracy.

The data are the test part of UCI's "Optical Recognition of Handwritten Digits": ``pip install scikit-learn``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

TEST = 497
# What the examples compare: name -> bits of weights and activations.
WIDTHS = {"float": None, "8": 8, "4": 4, "3": 3}


class Digits(NamedTuple):
    """Images (n, 8, 8, 1) in 0..1 and labels (n,) to train on, and others to test with."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(seed: int = 0) -> Digits:
    """The digits, divided at random into 1300 to train on and 497 to test with.

    Raises:
      ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the examples use scikit-learn's digits: pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)[order]
    labels = labels.astype(np.int32)[order]
    return Digits(images[TEST:], labels[TEST:], images[:TEST], labels[:TEST])


def train(apply: Callable, params: Any, digits: Digits, seed: int = 0, steps: int = 400, batch: int = 64) -> Any:
    """Parameters after some steps of Adam on the cross entropy of ``apply(params, images)``, (n, 10) logits."""
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, steps))

    def loss(params, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, images), labels).mean()

    @jax.jit
    def run(params, images, labels, chosen):
        def step(carry, one):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, images[one], labels[one]), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), chosen)
        return params

    chosen = np.random.default_rng(seed).integers(len(digits.images), size=(steps, batch))
    return run(params, digits.images, digits.labels, chosen)


def accuracy(logits: jax.Array, digits: Digits) -> float:
    """Share of test images whose largest logit is their label's."""
    return float((np.argmax(logits, -1) == digits.test_labels).mean())


def main(run: Callable[[int], dict[str, float]]) -> None:
    """Prints a table of an example's accuracies for the seed of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="of the split, the initial weights and the batches")
    seed = parser.parse_args().seed
    print(f"bits   accuracy on {TEST} test images, seed {seed}")
    for name, share in run(seed).items():
        print(f"{name:<5}  {share:.1%}")
