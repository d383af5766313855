import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.autoregression import mar_loss, mar_sample, pair
from genjax.autoregression.masked import cosine, masked_counts
from genjax.diffusion import (
    VariancePreservingTable,
    cosine_betas,
    ddpm,
    guide,
    hybrid_loss,
    noise,
    predict,
    trailing_grid,
    uniform,
)
from genjax.models.autoregressive import mar
from genjax.models.autoregressive.mar import MAR, TokenDenoiser
from genjax.nn import Text

BATCH, GRID, CHANNELS = 3, (2, 3), 2
NETWORK = MAR(CHANNELS, GRID, 16, 2, 2, denoiser_width=8, denoiser_depth=2, num_classes=5, buffer=4)
RANDOM = np.random.default_rng(0)
TOKENS = jnp.asarray(RANDOM.standard_normal((BATCH, 6, CHANNELS)), jnp.float32)
MASK = jnp.asarray([[1, 0, 1, 0, 1, 1]] * BATCH, bool)
LABELS = jnp.asarray([0, 4, 5])


@pytest.fixture(scope="module")
def variables():
    """Variables away from the initialisation, where every part of the network matters."""
    random = np.random.default_rng(1)
    inputs = TOKENS, MASK, LABELS, TOKENS, jnp.zeros(BATCH)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


# Counted in the authors' code, models/mar.py and models/diffloss.py.
@pytest.mark.parametrize(
    ("size", "expected", "denoiser"),
    [
        ("B", 207_924_768, 35_749_920),
        ("L", 478_326_304, 72_230_432),
        ("H", 942_403_104, 151_206_944),
    ],
)
def test_parameter_counts(size, expected, denoiser):
    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((1, *shape), dtype)
    tokens, mask = struct(256, 16), struct(256, dtype=bool)
    params = jax.eval_shape(
        getattr(mar, f"MAR_{size}")().init,
        jax.random.key(0),
        *(tokens, mask, struct(dtype=jnp.int32), tokens, struct()),
    )["params"]
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    assert (count(params), count(params["denoiser"])) == (expected, denoiser)


def test_states_depend_on_all_tokens_that_are_not_masked_and_on_no_other(variables):
    def states(tokens):
        return (NETWORK.apply(variables, tokens, MASK, LABELS, method="states") ** 2).sum((0, 2))

    depends = np.abs(jax.jit(jax.jacrev(states))(TOKENS)).max((1, 3)) > 0
    np.testing.assert_array_equal(depends, np.broadcast_to(~MASK[0], (6, 6)))


def test_a_texts_states_stand_for_the_copies_of_the_class_but_for_its_padding():
    network = NETWORK.clone(of_text=True)
    random = np.random.default_rng(2)
    states = lambda *shape: random.standard_normal((BATCH, *shape)).astype(np.float32)
    text = Text(states(4, 8), states(5), jnp.arange(4) < jnp.array([[1], [2], [4]]))
    inputs = TOKENS, MASK, text, TOKENS, jnp.zeros(BATCH)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    variables = jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)
    of_tokens = lambda tokens: jnp.sum(
        network.apply(variables, TOKENS, MASK, text.replace(tokens=tokens), method="states") ** 2
    )
    depends = np.abs(jax.jit(jax.grad(of_tokens))(text.tokens)).max(-1) > 0
    np.testing.assert_array_equal(depends, text.mask)


def test_the_first_denoiser_answers_zero_and_tokens_are_denoised_apart(variables):
    t, states = jnp.full(6, 0.3), jnp.ones((6, 16))
    first = TokenDenoiser(8, 1, 2 * CHANNELS).init_with_output
    output, _ = jax.jit(first)(jax.random.key(0), TOKENS[0], t, states)
    np.testing.assert_array_equal(output, np.zeros((6, 2 * CHANNELS)))

    states = jnp.asarray(RANDOM.standard_normal((BATCH, 6, 16)), jnp.float32)
    denoise = jax.jit(lambda *a: NETWORK.apply(variables, *a, method="denoise"))
    t = jnp.asarray(RANDOM.random((BATCH, 6)), jnp.float32)
    whole = denoise(TOKENS, t, states)
    assert np.abs(whole - denoise(TOKENS, t[:, 0], states))[:, 1:].min() > 1e-5
    order = RANDOM.permutation(6)
    moved = denoise(TOKENS[:, order], t[:, order], states[:, order])
    np.testing.assert_allclose(moved, whole[:, order], atol=1e-5)


@pytest.mark.slow
def test_it_trains_and_samples_with_genjax_diffusion(variables):
    methods = "states", "denoise"
    process = VariancePreservingTable(betas=cosine_betas(1000))
    apply = lambda variables, *a, method: NETWORK.apply(variables, *a, method=method)

    @jax.jit
    def gradients(variables, key):
        states, denoise = (functools.partial(apply, variables, method=m) for m in methods)
        loss = functools.partial(hybrid_loss, process=process, target=noise, times=uniform)
        return mar_loss(key, states, denoise, TOKENS, LABELS, loss=loss).mean()

    gradient = jax.jit(jax.grad(gradients))(variables, jax.random.key(0))
    norms = jax.tree.map(lambda a: float(jnp.abs(a).max()), gradient)
    assert all(0 < norm < np.inf for norm in jax.tree.leaves(norms)), norms

    times, counts, traces = trailing_grid(process, 4), masked_counts(cosine, 6, 3), []

    @jax.jit
    def sample(keys, guidance_scale):
        traces.append(None)
        network, denoise = (functools.partial(apply, variables, method=m) for m in methods)

        def states(x, mask):
            twice = lambda a: jnp.repeat(a, 2, axis=0)
            z = network(twice(x), twice(mask), pair(LABELS, NETWORK.num_classes))
            return z[0::2], z[1::2]

        def draw(keys, states, share):
            denoiser = predict(denoise, process, noise, learned_variance=True)
            guided = guide(denoiser, *states, 1 + (guidance_scale - 1) * share)
            shape = (*states[0].shape[1:-1], CHANNELS)
            return ddpm(guided, process, process.prior(keys, shape), times, keys=keys)

        return mar_sample(keys, states, draw, CHANNELS, counts)

    keys = jax.random.split(jax.random.key(0), BATCH)
    samples = [sample(keys, scale) for scale in (1.0, 3.0)]
    assert len(traces) == 1 and samples[0].shape == TOKENS.shape
    assert np.isfinite(samples).all() and np.abs(samples[0] - samples[1]).max() > 1e-3


def test_another_grid_is_refused():
    with pytest.raises(ValueError, match="a grid of 2×3 has 6 tokens; got 5"):
        tokens, mask = TOKENS[:, :5], MASK[:, :5]
        jax.eval_shape(NETWORK.init, jax.random.key(0), tokens, mask, LABELS, tokens, jnp.zeros(3))
