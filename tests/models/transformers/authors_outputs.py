"""The weights and outputs of authors' networks that data/README.md describes."""

from pathlib import Path

import jax
import numpy as np

DATA = Path(__file__).with_name("data")


def load(name):
    """Return the weights by the authors' names, and the other arrays, of a file."""
    arrays = dict(np.load(DATA / f"{name}.npz"))
    weights = {
        key.removeprefix("weights/"): arrays.pop(key).astype(np.float32)
        for key in tuple(arrays)
        if key.startswith("weights/")
    }
    return weights, arrays


def stacked(block, prefixes):
    """Return the parameters `block(prefix)` of several blocks, stacked as a scan has them."""
    return jax.tree.map(lambda *layers: np.stack(layers), *map(block, prefixes))
