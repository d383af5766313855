import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.autoencoders.autoencoder_kl import (
    AutoencoderKL,
    AutoencoderKL_FLUX,
    AutoencoderKL_SD,
    AutoencoderKL_SD3,
)

key = jax.random.key(0)
images = jax.random.normal(jax.random.key(1), (2, 7, 10, 3))
small = functools.partial(AutoencoderKL, latent_channels=2, widths=(4, 6), blocks=1, groups=2)


def random_variables(module, inputs):
    """Replace the initial variables, many of which are zero."""
    random = np.random.default_rng(0)
    scale = lambda a: 0.5 if a.ndim == 1 else np.prod(a.shape[:-1]) ** -0.5
    draw = lambda a: np.float32(scale(a)) * random.standard_normal(a.shape, np.float32)
    return jax.tree.map(draw, jax.eval_shape(module.init, key, inputs))


def size(variables):
    return sum(a.size for a in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    "module, total, parts",
    [
        (
            AutoencoderKL_SD(),
            83_653_863,
            dict(encoder=34_163_592, decoder=49_490_179, quant_conv=72, post_quant_conv=20),
        ),
        (AutoencoderKL_FLUX(), 83_819_683, dict(encoder=34_274_208, decoder=49_545_475)),
        (AutoencoderKL_SD3(), 83_819_683, dict(encoder=34_274_208, decoder=49_545_475)),
    ],
)
def test_published_parameter_counts(module, total, parts):
    example = jnp.zeros((1, 64, 96, 3))
    variables = jax.eval_shape(module.init, key, example)
    assert {name: size(part) for name, part in variables["params"].items()} == parts
    assert size(variables) == total
    encode = functools.partial(module.apply, method="encode")
    mean, log_variance = jax.eval_shape(encode, variables, example)
    assert module.factor == 8 and mean.shape == log_variance.shape == (
        1,
        8,
        12,
        module.latent_channels,
    )


@pytest.mark.parametrize(
    "height, width, rows, columns", [(8, 12, 2, 3), (11, 13, 2, 3), (4, 4, 1, 1)]
)
def test_sides_that_the_factor_does_not_divide_are_cut(height, width, rows, columns):
    module = small(widths=(4, 4, 4))
    example = jnp.zeros((1, height, width, 3))
    reconstruction, variables = jax.eval_shape(module.init_with_output, key, example)
    mean, _ = jax.eval_shape(functools.partial(module.apply, method="encode"), variables, example)
    assert mean.shape == (1, rows, columns, 2) and reconstruction.shape == (
        1,
        4 * rows,
        4 * columns,
        3,
    )


@pytest.mark.parametrize("height, width", [(3, 8), (8, 3)])
def test_images_smaller_than_the_factor_are_refused(height, width):
    with pytest.raises(
        ValueError, match=f"images of {height}×{width} have no latents at a down-sampling of 4"
    ):
        jax.eval_shape(small(widths=(4, 4, 4)).init, key, jnp.zeros((1, height, width, 3)))


def test_transposed_kernels_make_of_transposed_images_transposed_images():
    """Nothing tells height from width, neither paddings nor attention's order of positions."""
    module = small(attention_levels=(1,))
    variables = random_variables(module, images)
    transposed = jax.tree.map(lambda a: a.swapaxes(0, 1) if a.ndim == 4 else a, variables)

    @jax.jit
    def apply(variables, images):
        mean, log_variance = module.apply(variables, images, method="encode")
        return mean, log_variance, module.apply(variables, mean, method="decode")

    outputs = apply(variables, images)
    others = apply(transposed, images.swapaxes(1, 2))
    for output, other in zip(outputs, others, strict=True):
        assert np.std(output) > 0.1 and output.shape[1] != output.shape[2]
        # float32 sums in another order, over some twenty layers.
        np.testing.assert_allclose(other.swapaxes(1, 2), output, rtol=0, atol=2e-5)


def test_every_parameter_matters_but_one():
    """A bias of keys adds the same number to all logits of a query, and softmax cancels it."""
    module = small(attention_levels=(0,))
    variables = random_variables(module, images)

    @jax.jit
    @jax.grad
    def gradient(variables):
        mean, log_variance = module.apply(variables, images, method="encode")
        return jnp.sum(module.apply(variables, mean, method="decode") ** 2) + jnp.sum(
            log_variance**2
        )

    for path, leaf in jax.tree.leaves_with_path(gradient(variables)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        largest = np.abs(leaf).max()
        assert largest < 1e-3 if name.endswith("key/bias") else largest > 0.01, (name, largest)


def test_initial_weights_are_those_of_pytorch():
    """U(−1/√fan_in, 1/√fan_in): values within the bound, with standard deviation bound/√3."""
    params = jax.jit(small(widths=(32,), groups=4).init)(key, images)["params"]
    for kernel, fan_in in (
        (params["encoder"]["mid_block_0"]["conv1"]["kernel"], 9 * 32),
        (params["decoder"]["mid_attention"]["query"]["kernel"], 32),
    ):
        assert np.abs(kernel).max() <= fan_in**-0.5
        # The deviation of n ≥ 1024 uniform values is off by a factor of 1 ± √(.2/n), at most .014;
        # allow three times that.
        np.testing.assert_allclose(np.std(kernel), (3 * fan_in) ** -0.5, rtol=0.04)


def test_bfloat16_keeps_parameters_and_outputs_float32():
    module = small(dtype=jnp.bfloat16)
    reconstruction, variables = jax.eval_shape(module.init_with_output, key, images)
    moments = jax.eval_shape(functools.partial(module.apply, method="encode"), variables, images)
    outputs = (reconstruction, variables, moments)
    assert {a.dtype for a in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
