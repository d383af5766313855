"""Networks over pixels: what each output depends on, sampling with a cache, and whole laws."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2, ncx2

from genjax.autoregression import categorical, mixture_of_logistics, read, sample_pixels
from genjax.diffusion import sample_keys
from genjax.models.autoregressive.pixel_cnn import GatedPixelCNN
from genjax.models.autoregressive.pixel_cnn_pp import PixelCNNPlusPlus
from genjax.models.autoregressive.pixel_rnn import PixelRNN
from genjax.models.autoregressive.pixel_transformer import PixelTransformer

NETWORKS = {
    "rnn": functools.partial(PixelRNN, width=6),
    "pixelcnn": functools.partial(GatedPixelCNN, width=6, depth=4),
    "rotary": functools.partial(PixelTransformer, width=12, num_heads=2, depth=2),
    "learned": functools.partial(
        PixelTransformer, width=12, num_heads=2, depth=2, positions="learned"
    ),
    "pixelcnn_pp": functools.partial(PixelCNNPlusPlus, width=4, depth=1),
}
SHAPE, LEVELS, CLASSES = (4, 4, 3), 5, 2


def network_of(name, shape=SHAPE, levels=LEVELS, num_classes=CLASSES):
    """Return a network and its likelihood."""
    options = {}
    likelihood = categorical(levels)
    if name == "pixelcnn_pp":
        likelihood = mixture_of_logistics(levels, 2)
        options["outputs"] = likelihood.outputs(shape[-1])
    return NETWORKS[name](shape, num_levels=levels, num_classes=num_classes, **options), likelihood


def made(*args, **options):
    """Return a network, its likelihood, and random variables, of which none is zero."""
    network, likelihood = network_of(*args, **options)
    picture = jnp.zeros((1, *network.image_shape), jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), picture, jnp.zeros(1, jnp.int32))
    random = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.6 * random.standard_normal(a.shape), a.dtype)
    return network, likelihood, jax.tree.map(draw, shapes)


@functools.cache
def computed(name):
    """Return a network, its variables, pictures, their classes, and the outputs.

    The second picture is the first one with another class. The others differ from it in one level.
    """
    network, _, variables = made(name)
    length = np.prod(SHAPE)
    picture = np.random.default_rng(0).integers(0, LEVELS, length)
    changed = (picture + np.eye(length, dtype=int)) % LEVELS
    pictures = np.stack([picture, picture, *changed]).reshape(-1, *SHAPE).astype(np.int32)
    labels = jnp.array([0, 1] + [0] * length)
    outputs = jax.device_get(jax.jit(network.apply)(variables, pictures, labels))
    return network, variables, pictures, labels, outputs


@pytest.mark.parametrize("network", [GatedPixelCNN, PixelRNN])
def test_kernels_have_a_centre(network):
    picture = jnp.zeros((1, *SHAPE), jnp.int32)
    with pytest.raises(ValueError, match="kernel_size is 4; take an odd"):
        network(SHAPE, kernel_size=4).init(jax.random.key(0), picture, jnp.zeros(1, jnp.int32))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_output_depends_on_all_of_the_past_and_the_class_and_on_no_future(name):
    """Each level is changed in turn: integers have no gradients, and a change misses nothing.

    Outputs of PixelCNN++ are of a whole pixel, whose channels the likelihood joins.
    """
    *_, outputs = computed(name)
    length = len(outputs) - 2
    outputs = outputs.reshape(length + 2, -1, outputs.shape[-1])
    differs = np.any(outputs[1:] != outputs[0], axis=-1)  # [class and changed places, outputs]
    of_pixel = length // outputs.shape[1]
    unit = np.arange(length) // of_pixel
    assert differs[0].all()
    np.testing.assert_array_equal(differs[1:], unit[:, None] < np.arange(outputs.shape[1]))


def test_logits_of_a_transformer_are_not_rounded_to_the_type_of_products():
    network, _, variables = made("rotary")
    picture, label = jnp.zeros((1, *SHAPE), jnp.int32), jnp.zeros(1, jnp.int32)
    logits = jax.jit(network.clone(dtype=jnp.bfloat16).apply)(variables, picture, label)
    assert logits.dtype == jnp.float32
    assert np.any(logits != logits.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_with_a_cache_are_those_of_the_whole_picture(name):
    network, variables, *arrays = computed(name)
    pictures, labels, whole = (array[1:3] for array in arrays)  # of both classes

    @jax.jit
    def one_by_one(variables):
        apply = functools.partial(network.apply, variables)
        first, cache = apply(labels, method="prefill")

        def advance(cache, inputs):
            outputs, cache = apply(cache, *inputs, method="step")
            return cache, outputs

        tokens = pictures.reshape(2, -1).T[:-1]
        _, others = jax.lax.scan(advance, cache, (tokens, jnp.arange(len(tokens))))
        return jnp.concatenate([first[None], others]).swapaxes(0, 1)

    if name == "pixelcnn_pp":  # a pixel's outputs are those of its three channels
        whole = jnp.repeat(whole, 3, axis=2)
    whole = whole.reshape(2, np.prod(SHAPE), -1)
    # float32: the order of sums differs
    np.testing.assert_allclose(one_by_one(variables), whole, rtol=1e-5, atol=1e-5)


def test_given_levels_are_read_in_one_pass_as_one_by_one():
    """The logits that follow, and the keys and values in the cache."""
    network, _, variables = made("rotary")
    labels, random = jnp.array([0, 1]), np.random.default_rng(0)
    given = jnp.asarray(random.integers(0, LEVELS, (2, 20)), jnp.int32)
    apply = functools.partial(network.apply, variables)

    @jax.jit
    def one_by_one(given):
        outputs, cache = apply(labels, method="prefill")
        return read(functools.partial(apply, method="step"), outputs, cache, given)

    one_pass = jax.jit(functools.partial(apply, method="prefill"))(labels, given)
    expected = one_by_one(given)
    assert np.abs(expected[0]).max() > 0.5
    # float32: the order of sums differs
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, one_pass, expected)
    with pytest.raises(ValueError, match="48 sub-pixels are given of pictures that have 48"):
        jax.eval_shape(functools.partial(apply, method="prefill"), labels, jnp.ones((2, 48), int))


@pytest.mark.parametrize("name", ["rnn", "pixelcnn", "rotary"])
def test_at_first_all_levels_are_equally_likely(name):
    """8 bits per dimension of 256 levels, here of grey pictures without classes."""
    shape = (3, 4, 1)
    network, likelihood = network_of(name, shape, levels=256, num_classes=0)
    pictures = jax.random.randint(jax.random.key(2), (2, *shape), 0, 256)
    init = jax.jit(lambda *inputs: network.init_with_output(*inputs)[0])
    outputs = init(jax.random.key(0), pictures, jnp.array([0, 1]))
    bits = -likelihood.log_probability(outputs, pictures).mean() / np.log(2)
    assert bits == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("name", ["rnn", "rotary"])
def test_probabilities_sum_to_one_and_samples_follow_them(name):
    """All 256 pictures of 2×2 pixels with 4 levels, without classes."""
    shape, levels, count = (2, 2, 1), 4, 20_000
    network, likelihood, variables = made(name, shape, levels, num_classes=0)
    pictures = np.array(list(itertools.product(range(levels), repeat=4)), np.int32)
    probabilities = law(network, likelihood, variables, pictures.reshape(-1, *shape))
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    samples = sampled(network, likelihood, variables, shape, count).reshape(count, -1)
    found = np.bincount(samples @ levels ** np.arange(3, -1, -1), minlength=len(pictures))
    check_frequencies(found, probabilities)


def law(network, likelihood, variables, pictures):
    """Return the probabilities of pictures. Logarithms are summed in float64."""

    @jax.jit
    def log_probability(variables, pictures):
        outputs = network.apply(variables, pictures, jnp.zeros(len(pictures), jnp.int32))
        return likelihood.log_probability(outputs, pictures)

    nats = np.asarray(log_probability(variables, pictures), np.float64)
    return np.exp(nats.reshape(len(pictures), -1).sum(1))


def sampled(network, likelihood, variables, shape, count):
    @jax.jit
    def draw(variables):
        apply = functools.partial(network.apply, variables)
        outputs, cache = apply(jnp.zeros(count, jnp.int32), method="prefill")
        keys = sample_keys(jax.random.key(3), jnp.arange(count))
        step = functools.partial(apply, method="step")
        return sample_pixels(keys, step, outputs, cache, likelihood, shape)

    return np.asarray(draw(variables))


def check_frequencies(found, probabilities):
    """Compare by chi-square at the level 1e-4, cells of few expected samples together.

    The test would notice, with probability 0.99, a law whose relative error is 0.15 (root mean
    square).
    """
    count = found.sum()
    order = np.argsort(probabilities)
    rare = np.cumsum(probabilities[order]) * count < 10
    pool = lambda a: np.append(a[order][~rare], a[order][rare].sum())
    found, expected = pool(found), pool(probabilities) * count
    expected = np.maximum(expected, 1e-9)
    statistic, degrees = ((found - expected) ** 2 / expected).sum(), len(expected) - 1
    limit = chi2.isf(1e-4, degrees)
    assert ncx2.sf(limit, degrees, count * 0.15**2) > 0.99
    assert statistic < limit


def test_pictures_of_another_shape_are_refused():
    """A smaller picture would be read at the places of the first rows."""
    levels = jnp.zeros((1, SHAPE[0] - 1, *SHAPE[1:]), int)
    with pytest.raises(ValueError, match="this network is of pictures .*: set image_shape"):
        jax.eval_shape(PixelTransformer(SHAPE).init, jax.random.key(0), levels, jnp.zeros(1, int))


def test_unknown_positions_are_named():
    network = PixelTransformer(SHAPE, positions="absolute")
    with pytest.raises(ValueError, match="'learned' or 'rotary'; got 'absolute'"):
        jax.eval_shape(
            network.init, jax.random.key(0), jnp.zeros((1, *SHAPE), int), jnp.zeros(1, int)
        )


@pytest.mark.parametrize("name", ["rnn", "pixelcnn", "pixelcnn_pp"])
def test_levels_are_integers(name, unchecked_annotations):
    """Images in [−1, 1] would be taken for levels near 0."""
    network, _ = network_of(name)
    with pytest.raises(ValueError, match="levels are integers from 0 to 4; got float32"):
        inputs = jnp.zeros((1, *SHAPE)), jnp.zeros(1, jnp.int32)
        jax.eval_shape(network.init, jax.random.key(0), *inputs)
