import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.gans.patchgan import Discriminator

key = jax.random.key(0)
images = jax.random.normal(jax.random.key(2), (4, 12, 16, 3))


def random_variables(network, inputs):
    """Replace initial weights of .02, which make outputs almost constant; statistics are 1."""
    random = np.random.default_rng(0)
    variables = jax.eval_shape(network.init, key, inputs)
    params = jax.tree.map(
        lambda a: 0.3 * random.standard_normal(a.shape, np.float32), variables["params"]
    )
    others = {name: value for name, value in variables.items() if name != "params"}
    return {"params": params} | jax.tree.map(lambda a: np.ones(a.shape, np.float32), others)


@pytest.mark.parametrize("layers, expected, logits", [(3, 2_765_633, 30), (2, 663_361, 62)])
def test_published_parameter_counts(layers, expected, logits):
    """pix2pix has 30×30 logits for 256 pixels."""
    example = jnp.zeros((2, 256, 256, 3))
    output, variables = jax.eval_shape(Discriminator(layers=layers).init_with_output, key, example)
    assert sum(a.size for a in jax.tree.leaves(variables["params"])) == expected
    assert output.shape == (2, logits, logits)


@pytest.mark.parametrize("layers, side", [(1, 16), (2, 34), (3, 70)])
def test_logits_see_patches(layers, side):
    """The paper has 16 and 70 pixels (section 6.1.2, table 4); r ← stride·(r − 1) + 4 gives 34."""
    network = Discriminator(width=2, layers=layers)
    image = jax.random.normal(key, (1, 104, 112, 1))
    variables = random_variables(network, image)
    rows, columns = jax.eval_shape(network.apply, variables, image).shape[1:]
    gradient = jax.jit(jax.grad(lambda x: network.apply(variables, x)[0, rows // 2, columns // 2]))(
        image
    )
    seen = np.argwhere(gradient[0, :, :, 0])
    np.testing.assert_array_equal(seen.max(axis=0) - seen.min(axis=0) + 1, side)


@pytest.mark.parametrize("layers, least", [(1, 6), (2, 12)])
def test_images_too_small_for_a_logit_are_refused(layers, least):
    init = functools.partial(jax.eval_shape, Discriminator(layers=layers).init_with_output, key)
    assert init(jnp.zeros((1, least, least, 3)))[0].shape == (1, 1, 1)
    with pytest.raises(
        ValueError, match=f"images of {least}×{least} or more; these are {least}×{least - 1}"
    ):
        init(jnp.zeros((1, least, least - 1, 3)))


def test_group_norm_judges_each_image_alone_and_batch_norm_the_batch():
    def judge(**options):
        network = Discriminator(width=4, layers=2, **options)
        variables = random_variables(network, images)

        @jax.jit
        def apply(images):
            return network.apply(variables, images, train=True, mutable=["batch_stats"])

        logits, state = apply(images)
        alone, _ = apply(images[:1])
        return np.abs(logits[:1] - alone).max(), np.std(logits), state

    difference, deviation, state = judge(groups=2)
    assert difference < 1e-5 < deviation and not state  # float32 rounding
    difference, _, state = judge()
    assert difference > 0.1 and set(state["batch_stats"]) == {"norm_1", "norm_2"}


@pytest.mark.parametrize("groups", [None, 2])
def test_bfloat16_keeps_parameters_and_outputs_float32(groups):
    network = Discriminator(width=4, layers=2, groups=groups, dtype=jnp.bfloat16)
    outputs = jax.eval_shape(network.init_with_output, key, images)
    assert {a.dtype for a in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
