"""StyleGAN3's generators as their authors' PyTorch code writes them (Karras et al. 2021).

A file holds the state dict of `G` or `G_ema`, in safetensors. `stylegan2.load_discriminator` reads
the discriminator.
"""

import functools
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.models.gans.stylegan3 import Generator
from genjax.pretrained.layouts import from_torch, replace_words
from genjax.pretrained.published import example
from genjax.pretrained.variables import load_variables

_WORDS = {
    **{"waves": "input", "frequencies": "freqs", "power": "magnitude_ema"},
    **{r"dense(\d+)": r"fc\1", "embedding": "embed", "kernel": "weight", "w_average": "w_avg"},
}


def load_generator(path: str | os.PathLike, module: Generator) -> Any:
    """Read the variables of `module` from the state dict of a generator.

    The filters, which are constants in our modules, are only compared with what they must be.

    Raises:
        ValueError: tensors are missing, extra, misshapen or unusable; the error lists them.
    """
    labels = example(dtype=jnp.int32) if module.num_classes else None
    inputs = example(module.latent_size), labels
    expected = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    rename, ignore = (functools.partial(f, module) for f in (_rename, _is_constant))
    return load_variables(path, expected, rename, from_torch, ignore)


def _name(module: Generator, index: int) -> str:
    """Return the published name of a layer, as "L0_36_512": its number, side and channels."""
    shape = module.shapes[index]
    return f"L{index}_{shape.size}_{shape.channels}"


def _rename(module: Generator, variable: str) -> str:
    first, *rest = variable.split("/")[1:]  # without the collection
    if first == "w_average":
        return "mapping.w_avg"
    words = [] if first == "mapping" else ["synthesis"]
    layer = re.fullmatch(r"layers_(\d+)", first)
    words.append(_name(module, int(layer[1])) if layer else first)
    return ".".join([*replace_words(words, _WORDS), *replace_words(rest, _WORDS)])


def _is_constant(module: Generator, name: str, tensor: np.ndarray) -> bool:
    """Return whether a tensor is a filter of the module, or a transformation by nothing."""
    *_, layer, leaf = name.split(".")
    if leaf == "transform":
        return np.array_equal(tensor, np.eye(3))
    index = re.match(r"L(\d+)_", layer)
    if leaf not in ("up_filter", "down_filter") or not index:
        return False
    ours = module.filters(int(index[1]))[leaf.replace("filter", "taps")]
    return tensor.shape == np.shape(ours) and np.allclose(tensor, ours, rtol=0, atol=1e-7)
