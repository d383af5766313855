import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.autoregression import decode_scales
from genjax.models.autoencoders.vqgan import VAR_F16
from genjax.models.autoregressive import var
from genjax.models.autoregressive.var import SIDES_256, SIDES_512, VAR
from genjax.nn import Text
from genjax.nn.multiscale import MultiScaleQuantizer
from tests.chi_square import p_value

SIDES, FEATURES, VOCABULARY = (1, 2, 3), 4, 7
NETWORK = VAR(VOCABULARY, SIDES, 16, 2, 2, num_classes=5)
RANDOM = np.random.default_rng(0)
INPUTS = jnp.asarray(RANDOM.standard_normal((3, 13, FEATURES)), jnp.float32)
LABELS = jnp.asarray([0, 4, 5])
ENDS = np.cumsum([side**2 for side in SIDES])


@pytest.fixture(scope="module")
def variables():
    """Variables away from the initialisation, where every part of the network matters."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), INPUTS, LABELS)
    return jax.tree.map(lambda a: 0.4 * random.standard_normal(a.shape, np.float32), shapes)


def count(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


# Counted in the authors' code, models/var.py and models/vqvae.py.
@pytest.mark.parametrize(
    ("depth", "sides", "tokens", "expected"),
    [
        ("d12", SIDES_256, 680, 133_186_960),
        ("d16", SIDES_256, 680, 310_283_520),
        ("d20", SIDES_256, 680, 600_917_136),
        ("d24", SIDES_256, 680, 1_033_399_360),
        ("d30", SIDES_256, 680, 2_010_020_356),
        ("d36s", SIDES_512, 2240, 2_353_893_904),
    ],
)
def test_parameter_counts(depth, sides, tokens, expected):
    network = getattr(var, f"VAR_{depth}")(sides=sides)
    assert network.length == tokens
    inputs = jax.ShapeDtypeStruct((1, tokens - 1, 32), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    assert count(jax.eval_shape(network.init, jax.random.key(0), inputs, labels)) == expected


def test_a_texts_pooled_vector_stands_for_the_class(variables):
    """A projection that returns the rows of classes gives their logits, in decoding too."""
    network = NETWORK.clone(of_text=True)
    params = dict(variables["params"])
    params["text_embedding"] = {
        "kernel": params.pop("labels")["embedding"], "bias": np.zeros(16, np.float32)
    }  # fmt: skip
    text = Text(jnp.zeros((3, 2, 1)), jax.nn.one_hot(LABELS, 6))

    @functools.partial(jax.jit, static_argnums=0)
    def run(network, variables, condition):
        started = network.apply(variables, condition, method="start")
        return network.apply(variables, INPUTS, condition), started.label

    found, expected = run(network, {"params": params}, text), run(NETWORK, variables, LABELS)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    own = dict(jax.eval_shape(network.init, jax.random.key(0), INPUTS, text)["params"])
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)


def test_parameter_counts_of_the_tokenizer():
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    init = VAR_F16(SIDES_256).init
    params = jax.eval_shape(init, jax.random.key(0), images)["params"]
    assert count(params) == 108_948_355
    parts = [count(params[name]) for name in ("encoder", "decoder", "quantizer")]
    assert parts == [44_107_872, 64_653_923, 168_064]


@pytest.mark.parametrize("shared", [False, True])
def test_cached_logits_are_those_of_all_maps_at_once(variables, shared):
    network = NETWORK.clone(shared_modulation=shared)
    if shared:
        shapes = jax.eval_shape(network.init, jax.random.key(0), INPUTS, LABELS)
        random = np.random.default_rng(1)
        variables = jax.tree.map(lambda a: random.standard_normal(a.shape, np.float32) / 3, shapes)

    @jax.jit
    def run(variables, inputs):
        apply = functools.partial(network.apply, variables)
        state, outputs = apply(LABELS, method="start"), []
        for scale, of_scale in enumerate([None, *jnp.split(inputs, ENDS[1:-1] - 1, axis=1)]):
            logits, state = apply(state, of_scale, scale, method="step")
            outputs.append(logits)
        return apply(inputs, LABELS), jnp.concatenate(outputs, axis=1)

    whole, cached = run(variables, INPUTS)
    assert np.abs(whole).max() > 0.5
    # The same sums of float32 in another order.
    np.testing.assert_allclose(cached, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_a_scale_reads_no_later_places_of_the_cache(variables):
    """What is not a number there does not reach the logits."""
    apply = functools.partial(NETWORK.apply, variables)

    def run(inputs):
        state = apply(LABELS, method="start")
        _, state = apply(state, None, 0, method="step")
        unread = lambda a: a.at[..., ENDS[1] :, :].set(jnp.nan)
        layers = state.layers._replace(keys=unread(state.layers.keys))
        layers = layers._replace(values=unread(layers.values))
        return apply(state._replace(layers=layers), inputs, 1, method="step")[0]

    assert np.all(np.isfinite(jax.jit(run)(INPUTS[:, : ENDS[1] - ENDS[0]])))


def test_a_map_depends_on_all_maps_before_it_and_on_no_other(variables):
    """The input of a place is made of the maps before its own, so it is seen by its own map."""

    def logits(inputs):
        return (NETWORK.apply(variables, inputs, LABELS) ** 2).sum((0, 2))

    depends = np.abs(jax.jit(jax.jacrev(logits))(INPUTS)).max((1, 3)) > 0
    scales = NETWORK.scales
    np.testing.assert_array_equal(depends, scales[:, None] >= scales[1:])


def test_probabilities_sum_to_1_and_samples_are_as_frequent():
    """All 243 sequences of 1 + 4 codes of 3, whose maps are sums of codes.

    The chi-square test tells the law from that of tokens that are drawn independently, each with
    its own frequencies.
    """
    network, quantizer = VAR(3, (1, 2), 16, 1, 2, num_classes=2), MultiScaleQuantizer(3, 2, (1, 2))
    sequences = np.array(list(itertools.product(range(3), repeat=5)))
    random = np.random.default_rng(2)
    draw = lambda a: 0.3 * random.standard_normal(a.shape, np.float32)
    codes = jax.eval_shape(quantizer.init, jax.random.key(0), jnp.zeros((1, 2, 2, 2)))
    codes = jax.tree.map(lambda a: 7 * draw(a), codes)  # far from each other
    inputs = quantizer.apply(codes, jnp.asarray(sequences), method="inputs")
    labels = jnp.ones(243, int)
    shapes = jax.eval_shape(network.init, jax.random.key(0), inputs, labels)
    apply = functools.partial(network.apply, jax.tree.map(draw, shapes))
    log_p = jax.nn.log_softmax(jax.jit(apply)(inputs, labels))
    nats = np.take_along_axis(np.asarray(log_p), sequences[..., None], -1)[..., 0].sum(1)
    law = np.exp(nats.astype(np.float64))
    assert law.sum() == pytest.approx(1, abs=1e-5)

    @jax.jit
    def drawn(keys):
        state = apply(jnp.ones(len(keys), int), method="start")
        step = functools.partial(apply, method="step")
        extend = functools.partial(quantizer.apply, codes, method="extend")
        return decode_scales(keys, step, state, extend, jnp.zeros((len(keys), 2, 2, 2)), 2)[0]

    tokens = np.asarray(drawn(jax.random.split(jax.random.key(1), 4000)))
    found = np.bincount(tokens @ 3 ** np.arange(5)[::-1], minlength=243)
    of_places = [np.bincount(place, law, minlength=3)[place] for place in sequences.T]
    assert p_value(found, law / law.sum(), against=np.prod(of_places, axis=0)) > 1e-3


def test_the_first_loss_is_that_of_uniform_logits():
    logits = jax.jit(lambda key: NETWORK.init_with_output(key, INPUTS, LABELS)[0])
    np.testing.assert_array_equal(logits(jax.random.key(0)), np.zeros((3, 14, VOCABULARY)))


def test_another_list_of_sides_is_refused():
    with pytest.raises(ValueError, match=r"maps of sides \(1, 2, 3\) need 13 inputs; got 12"):
        jax.eval_shape(NETWORK.init, jax.random.key(0), INPUTS[:, 1:], LABELS)
