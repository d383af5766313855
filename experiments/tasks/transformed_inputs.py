"""Images of a generator whose input is moved or turned."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PyTree

from experiments.tasks.programs import in_float32, on_mesh
from genjax.diffusion import sample_keys


def transformed_images(
    generator: nn.Module, variables: PyTree, sampling: Any, mesh: Mesh
) -> Callable[..., Float[np.ndarray, "batch height width channels"]]:
    """Return `transformed(labels, indices, transforms)`, the images of transformed inputs.

    Image i has the latent of number `indices[i]` of the seed, and `transforms[i]` as in
    `genjax.models.gans.stylegan3.Generator.synthesize`. Noise inputs are constant. Images are
    floats and not cut off at ±1. As in the program of StyleGAN3's authors, they are computed in
    float32, whatever the generator's `dtype`.

    Args:
        sampling: `seed` and `truncation`.
    """
    exact = in_float32(generator)

    def transformed(
        labels: Int[np.ndarray, " batch"],
        indices: Int[np.ndarray, " batch"],
        transforms: Float[np.ndarray, "batch 3 3"],
    ) -> Float[np.ndarray, "batch height width channels"]:
        inputs = labels, indices, transforms, sampling.truncation
        program, key = on_mesh(mesh, _images, exact), jax.random.key(sampling.seed)
        with jax.default_matmul_precision("highest"):
            return np.asarray(program(variables, key, *inputs))

    return transformed


def _images(generator: nn.Module, variables, key, labels, indices, transforms, truncation):
    draw = lambda key: jax.random.normal(key, (generator.latent_size,))
    z = jax.vmap(draw)(sample_keys(key, indices))
    w = generator.apply(variables, z, labels, truncation=truncation, method="map")
    return generator.apply(variables, w, transform=transforms, method="synthesize")
