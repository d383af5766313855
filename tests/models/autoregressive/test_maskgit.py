import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.autoregression import (
    choice_temperatures,
    guided_predict,
    masked_counts,
    masked_loss,
    maskgit,
)
from genjax.autoregression.masked import cosine
from genjax.models.autoregressive.maskgit import MaskGIT
from genjax.models.autoregressive.prefixes import ClassPrefix, TextPrefix
from genjax.nn import Text

VOCABULARY, GRID = 7, (2, 3)
LENGTH = math.prod(GRID)
NETWORK = MaskGIT(VOCABULARY, GRID, 16, 2, 2, ClassPrefix(5))
RANDOM = np.random.default_rng(0)
TOKENS = jnp.asarray(RANDOM.integers(0, VOCABULARY + 1, (3, LENGTH)))
LABELS = jnp.asarray([0, 4, 5])


def perturbed(network, *inputs):
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def variables():
    return perturbed(NETWORK, TOKENS, LABELS)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(NETWORK.apply)


def test_every_token_sees_every_token_and_the_class(variables, apply):
    expected = apply(variables, TOKENS, LABELS)
    assert expected.shape == (3, LENGTH, VOCABULARY)
    changed = [apply(variables, TOKENS.at[:, i].add(1) % 8, LABELS) for i in range(LENGTH)]
    changed.append(apply(variables, TOKENS, (LABELS + 1) % 6))
    for output in changed:
        assert (np.abs(output - expected).max(-1) > 1e-4).all()


def test_logits_are_not_rounded_to_the_type_of_products(variables):
    variables["params"]["bias"] *= 0
    params = variables["params"] | {"bias": jnp.zeros(VOCABULARY)}
    logits = NETWORK.clone(dtype=jnp.bfloat16).apply({"params": params}, TOKENS, LABELS)
    assert logits.dtype == jnp.float32
    assert np.any(logits != logits.astype(jnp.bfloat16).astype(jnp.float32))


def test_tokens_without_positions_may_change_places(variables, apply):
    order = RANDOM.permutation(LENGTH)
    same = jnp.zeros_like(variables["params"]["positions"])
    variables = {"params": variables["params"] | {"positions": same}}
    expected = apply(variables, TOKENS, LABELS)[:, order]
    np.testing.assert_allclose(apply(variables, TOKENS[:, order], LABELS), expected, atol=1e-5)


def test_padding_of_a_text_is_hidden():
    network = MaskGIT(VOCABULARY, GRID, 16, 1, 2, TextPrefix(4))
    states, mask = RANDOM.standard_normal((3, 4, 6), np.float32), np.arange(4) < [[4], [2], [1]]
    text = Text(jnp.asarray(states), mask=jnp.asarray(mask))
    variables, apply = perturbed(network, TOKENS, text), jax.jit(network.apply)
    other = text.replace(tokens=jnp.where(mask[..., None], states, 9.0))
    expected = apply(variables, TOKENS, text)
    np.testing.assert_allclose(apply(variables, TOKENS, other), expected, atol=1e-5)


def test_the_first_loss_is_nearly_that_of_uniform_logits():
    network = MaskGIT(1024, (4, 4), 64, 1, 2, ClassPrefix(5))
    tokens, labels = jnp.asarray(RANDOM.integers(0, 1024, (8, 16))), jnp.zeros(8, int)

    @jax.jit
    def loss(key):
        variables = network.init(key, tokens, labels)
        masked = jnp.full_like(tokens, network.mask_token)
        logits = network.apply(variables, masked, labels)
        return masked_loss(logits, tokens, jnp.ones(tokens.shape, bool)).mean()

    # Logits of deviation √64·.02 = .16 add half their variance, .0128.
    assert abs(loss(jax.random.key(0)) - math.log(1024)) < 0.03


def test_guided_sampling_ends_without_masks_and_one_program_serves_all_scales(variables):
    traces = []

    @jax.jit
    def run(keys, guidance_scale, counts, temperatures):
        traces.append(None)
        network = lambda tokens, labels: NETWORK.apply(variables, tokens, labels)
        predict = guided_predict(network, LABELS, 5, lambda share: 1 + guidance_scale * share)
        masks = jnp.full((3, LENGTH), NETWORK.mask_token)
        return maskgit(keys, predict, masks, NETWORK.mask_token, counts, temperatures)

    keys = jax.random.split(jax.random.key(0), 3)
    counts, temperatures = masked_counts(cosine, LENGTH, 4), choice_temperatures(4, 4.5)
    samples = [run(keys, scale, counts, temperatures) for scale in (0.0, 3.0)]
    assert len(traces) == 1 and (samples[0] != samples[1]).any()
    for tokens in samples:
        assert 0 <= tokens.min() and tokens.max() < VOCABULARY


def test_another_grid_is_refused():
    with pytest.raises(ValueError, match="a grid of 2×3 has 6 tokens; got 5"):
        jax.eval_shape(NETWORK.init, jax.random.key(0), TOKENS[:, :5], LABELS)
