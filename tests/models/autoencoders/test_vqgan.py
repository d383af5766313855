import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.vqgan import VQGAN_F16, LlamaGen_F8, LlamaGen_F16, VQModel
from genjax.nn.quantizers import FiniteScalarQuantizer, ResidualVectorQuantizer, VectorQuantizer

key = jax.random.key(0)
images = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
small = functools.partial(VQModel, encoder_channels=4, widths=(4, 4), blocks=1, groups=2)


@pytest.mark.parametrize(
    "module, factor, total, parts",
    [
        (VQGAN_F16(), 16, None, dict(encoder=29_298_176, decoder=42_449_795)),
        (LlamaGen_F16(), 16, 71_883_403, {}),
        (LlamaGen_F8(), 8, 70_109_835, {}),  # the authors' VQ_8, counted by PyTorch
    ],
)
def test_published_parameter_counts(module, factor, total, parts):
    size = lambda variables: sum(a.size for a in jax.tree.leaves(variables))
    example = jnp.zeros((1, 64, 32, 3))
    reconstruction, variables = jax.eval_shape(module.init_with_output, key, example)
    params = variables["params"]
    assert total in (None, size(params)) and reconstruction.shape == example.shape
    assert {name: size(params[name]) for name in parts} == parts
    latents = jax.eval_shape(functools.partial(module.apply, method="encode"), variables, example)
    assert module.factor == factor and latents.shape == (
        1,
        64 // factor,
        32 // factor,
        module.latent_channels,
    )


@pytest.mark.parametrize(
    "quantizer, levels",
    [
        (VectorQuantizer(16, 3, normalize=True), ()),
        (ResidualVectorQuantizer(2, 16, 3), (2,)),
        (FiniteScalarQuantizer((5, 4)), ()),
    ],
)
def test_images_are_reconstructed_from_indices(quantizer, levels):
    module, random = small(quantizer), np.random.default_rng(0)
    draw = lambda a: (
        np.prod(a.shape[:-1]).astype(np.float32) ** -0.5
        * random.standard_normal(a.shape, np.float32)
    )
    variables = jax.tree.map(draw, jax.eval_shape(module.init, key, images))

    @jax.jit
    def apply(images):
        latents = module.apply(variables, images, method="encode")
        indices = module.apply(variables, latents, method="quantize").indices
        decoded = module.apply(variables, indices, method="decode_indices")
        return indices, decoded, module.apply(variables, images)

    indices, decoded, reconstruction = apply(images)
    assert indices.shape == (2, 4, 6, *levels) and len(np.unique(indices)) > 4
    assert np.std(decoded) > 0.1
    # Equal up to float32 rounding in some ten layers.
    np.testing.assert_allclose(reconstruction, decoded, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_encoder_learns_through_the_codes_and_the_codebook_follows():
    module = small(VectorQuantizer(16, 3, ema_decay=0.5))

    @jax.jit
    def step(images):
        variables = module.init(key, images)

        def loss(params):
            reconstruction, state = module.apply(
                variables | {"params": params}, images, train=True, mutable=["codebook"]
            )
            return jnp.mean((reconstruction - images) ** 2), state

        return variables, *jax.grad(loss, has_aux=True)(variables["params"])

    variables, gradient, state = step(images)
    assert np.abs(gradient["encoder"]["conv_in"]["kernel"]).max() > 1e-6
    assert "quantizer" not in gradient
    old, new = variables["codebook"]["quantizer"]["codes"], state["codebook"]["quantizer"]["codes"]
    assert np.any(old != new)


def test_images_smaller_than_the_factor_are_refused():
    with pytest.raises(ValueError, match="images of 8×1 have no latents at a down-sampling of 2"):
        jax.eval_shape(small(VectorQuantizer(4, 2)).init, key, jnp.zeros((1, 8, 1, 3)))


def test_bfloat16_keeps_parameters_and_outputs_float32():
    module = small(VectorQuantizer(4, 2), dtype=jnp.bfloat16)
    reconstruction, variables = jax.eval_shape(module.init_with_output, key, images)
    latents = jax.eval_shape(functools.partial(module.apply, method="encode"), variables, images)
    outputs = (reconstruction, variables, latents)
    assert {a.dtype for a in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
