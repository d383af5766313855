import jax
import jax.numpy as jnp
import numpy as np

from genjax.autoregression import decode_scales, guide, linear_guidance, pair
from tests.chi_square import p_value

COUNT, VOCABULARY = 20_000, 3
RANDOM = np.random.default_rng(0)
FIRST = RANDOM.dirichlet(np.ones(VOCABULARY))
SECOND = RANDOM.dirichlet(np.ones(VOCABULARY), VOCABULARY)  # given the first token


def step(state, inputs, scale):
    """A map of one token, then one of two tokens, which depend on the sum of maps."""
    if inputs is None:
        return jnp.log(jnp.broadcast_to(jnp.asarray(FIRST), (len(state), 1, VOCABULARY))), state
    assert scale == 1
    return jnp.log(jnp.asarray(SECOND))[inputs[..., 0].astype(int)], state


def extend(total, tokens, scale):
    total = total + tokens.reshape(len(tokens), 1, -1, 1)
    return total, total[:, 0] if scale == 0 else None


def run(keys):
    total = jnp.zeros((len(keys), 1, 2, 1))
    return decode_scales(keys, step, jnp.zeros(len(keys)), extend, total, 2)


def test_samples_have_the_law_of_the_chain():
    """A chi-square test over all 27 sequences; and the sum is that of the tokens.

    It tells the law from that of a second map that does not depend on the first.
    """
    tokens, total = jax.jit(run)(jax.random.split(jax.random.key(0), COUNT))
    law = np.einsum("i,ij,ik->ijk", FIRST, SECOND, SECOND).ravel()
    observed = np.bincount(np.asarray(tokens) @ [9, 3, 1], minlength=27)
    alone = FIRST @ SECOND
    independent = np.einsum("i,j,k->ijk", FIRST, alone, alone).ravel()
    assert p_value(observed, law, against=independent) > 1e-3
    np.testing.assert_array_equal(total[:, 0, :, 0], tokens[:, :1] + tokens[:, 1:])


def test_a_sample_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(0), 8)
    np.testing.assert_array_equal(run(keys[5:])[0], run(keys)[0][5:])


def test_guidance_grows_with_the_scale():
    """(1 + t)·c − t·u with t = weight·k/(K − 1), as the authors write it."""
    logits = jnp.asarray(RANDOM.standard_normal((4, 2, VOCABULARY)), jnp.float32)
    guided = guide(lambda state, inputs, scale: (logits, inputs), linear_guidance(1.5, 4))
    for scale, inputs in enumerate([None, jnp.ones((2, 2, 1)), None, None]):
        output, seen = guided(pair(jnp.zeros(2), 1.0), inputs, scale)
        t = 1.5 * scale / 3
        np.testing.assert_allclose(output, (1 + t) * logits[::2] - t * logits[1::2], atol=1e-6)
        assert seen is None if inputs is None else seen.shape == (4, 2, 1)


def test_unconditional_sampling_is_unconditional_at_every_scale():
    np.testing.assert_array_equal([linear_guidance(-1.0, 4)(scale) for scale in range(4)], 0)
    assert linear_guidance(1.5, 1)(0) == 1  # of a single scale, which is the first
