"""Wan's autoencoder: causality, chunks and memory; tests/parity compares with diffusers'."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.autoencoding.tiling import chunks_of_frames, stream
from genjax.models.autoencoders.autoencoder_wan import AutoencoderWan, autoencoder_wan_22
from genjax.nn.causal import CausalConv, apply_chunk, apply_chunks

FRAMES, HEIGHT, WIDTH = 13, 4, 8  # of videos; they have 4 latent frames of 1×2


@pytest.fixture(scope="module")
def module():
    return AutoencoderWan(
        latent_channels=3, widths=(4, 6, 8), blocks=1, temporal_downsample=(True, True)
    )


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def drawn(module):
    """Make variables in which every part matters.

    Biases are not zero, and layers add terms of their input's size."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return (path[-1].key == "scale") + scale * random.standard_normal(leaf.shape, np.float32)

    example = jax.ShapeDtypeStruct((1, 1, HEIGHT, WIDTH, 3), jnp.float32)
    return jax.tree.map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), example))


@pytest.fixture(scope="module")
def variables(module):
    return drawn(module)


@pytest.fixture(scope="module")
def whole(module):
    """`encode` and `decode` of whole videos, compiled once per shape."""
    return {
        name: jax.jit(functools.partial(module.apply, method=name)) for name in ("encode", "decode")
    }


@pytest.fixture(scope="module")
def steps(module):
    return {
        name: jax.jit(functools.partial(apply_chunk, module, method=name))
        for name in ("encode", "decode")
    }


VIDEO = normal(0, 1, FRAMES, HEIGHT, WIDTH, 3)
LATENTS = normal(1, 1, 4, 1, 2, 3)


@pytest.fixture(scope="module")
def published():
    """The published network in bfloat16, and the shapes and types of its variables."""
    module = AutoencoderWan(dtype=jnp.bfloat16)
    example = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    return module, jax.eval_shape(module.init, jax.random.key(0), example)


def test_parameters(published):
    module, expected = published
    assert expected.keys() == {"params"}
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count(expected) == 126_892_531
    assert {name: count(part) for name, part in expected["params"].items()} == dict(
        encoder=53_595_872, decoder=73_295_331, quant_conv=1056, post_quant_conv=272
    )
    assert (module.factor, module.temporal_factor) == (8, 4)
    assert len(module.latent_mean) == len(module.latent_deviation) == module.latent_channels == 16


def test_parameters_of_wan_22():
    module = autoencoder_wan_22()
    video = jax.ShapeDtypeStruct((1, 5, 32, 16, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), video)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 704_688_668
    assert (module.factor, module.temporal_factor) == (16, 4)
    assert len(module.latent_mean) == len(module.latent_deviation) == module.latent_channels == 48
    encode = functools.partial(module.apply, method="encode")
    assert jax.eval_shape(encode, variables, video)[0].shape == (1, 2, 2, 1, 48)


def test_shapes_and_types(published):
    """81 frames of 720p in bfloat16, without computing them: 21 latent frames of 90×160."""
    module, variables = published
    video = jax.ShapeDtypeStruct((1, 81, 720, 1280, 3), jnp.float32)
    moments = jax.eval_shape(functools.partial(module.apply, method="encode"), variables, video)
    assert [(a.shape, a.dtype) for a in moments] == [((1, 21, 90, 160, 16), jnp.float32)] * 2
    decoded = jax.eval_shape(
        functools.partial(module.apply, method="decode"), variables, moments[0]
    )
    assert (decoded.shape, decoded.dtype) == (video.shape, jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def assert_close(a, b):
    # Two programs of the same float32 sums, some twenty layers. The largest difference seen was
    # 5e-7.
    np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())


def test_first_frame_stands_alone(variables, whole):
    """A video's first frame as an image has the video's first latents, which decode to it."""
    mean, log_variance = whole["encode"](variables, VIDEO)
    assert mean.shape == log_variance.shape == (1, 4, 1, 2, 3)
    assert np.std(mean) > 0.1 and np.std(log_variance) > 0.1
    for alone, all in zip(
        whole["encode"](variables, VIDEO[:, :1]), (mean, log_variance), strict=True
    ):
        assert_close(alone, all[:, :1])
    assert_close(
        whole["decode"](variables, LATENTS[:, :1]), whole["decode"](variables, LATENTS)[:, :1]
    )


@pytest.mark.parametrize("method, x", [("encode", VIDEO), ("decode", LATENTS)])
def test_causal(variables, whole, method, x):
    """An input frame changes the outputs from some frame on, and no bit before."""
    apply = lambda x: jax.tree.leaves(whole[method](variables, x))
    outputs = apply(x)
    changed = [apply(x.at[:, i].multiply(-1)) for i in range(x.shape[1])]
    # Axes: input frames, output frames.
    moved = [
        np.max([np.abs(a - b).max((0, 2, 3, 4)) for a, b in zip(each, outputs, strict=True)], 0)
        for each in changed
    ]
    last = [4 * i for i in range(4)] if method == "encode" else [-(-i // 4) for i in range(13)]
    seen = np.array(moved).T
    expected = np.arange(seen.shape[1]) <= np.array(last)[:, None]
    assert np.all(seen[~expected] == 0)
    assert np.all(seen[np.arange(len(last)), last] > 1e-4)


def test_encoding_by_chunks(variables, whole, steps):
    chunks = chunks_of_frames(np.asarray(VIDEO), first=5, length=4)
    moments = list(stream(functools.partial(steps["encode"], variables), chunks))
    assert [mean.shape[1] for mean, _ in moments] == [2, 1, 1]
    for parts, expected in zip(
        zip(*moments, strict=True), whole["encode"](variables, VIDEO), strict=True
    ):
        assert_close(np.concatenate(parts, axis=1), expected)


def test_decoding_by_chunks(variables, whole, steps):
    """Chunks give the same frames, by one program for the first chunk and one for all others.

    Later chunks of several latent frames are in tests/parity.
    """
    chunks = chunks_of_frames(LATENTS, first=1, length=1)
    frames = list(stream(functools.partial(steps["decode"], variables), chunks))
    assert_close(np.concatenate(frames, axis=1), whole["decode"](variables, LATENTS))
    assert [chunk.shape[1] for chunk in frames] == [1, 4, 4, 4]
    assert steps["decode"]._cache_size() == 2


def test_decoding_by_chunks_in_one_program(module, variables, whole):
    """Chunks give the same frames; only the frames themselves grow with the length."""
    decode = jax.jit(functools.partial(apply_chunks, module, method="decode"))
    longer = jnp.zeros((1, 20, *LATENTS.shape[2:]))
    short, long = (decode.lower(variables, z).compile() for z in (LATENTS, longer))
    assert_close(short(variables, LATENTS), whole["decode"](variables, LATENTS))
    assert memory(long) - memory(short) <= 3 * 4 * 16 * HEIGHT * WIDTH * 3 * 4


def test_chunks_differ_without_the_cache(variables, whole, steps):
    """The caches matter: chunks decoded as separate videos differ."""
    apart = [steps["decode"](variables, LATENTS[:, i : i + 1])[0] for i in range(4)]
    assert np.concatenate(apart, axis=1).shape[1] == 4
    joined = whole["decode"](variables, LATENTS)
    assert np.abs(apart[1][:, 0] - joined[:, 4]).max() > 1e-2


def memory(compiled):
    """Return the bytes that a program needs beside its inputs."""
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def test_memory_of_a_chunk(variables, whole, steps):
    """The memory of the whole video grows with its length, by 4 from 16 to 64 latent frames.

    A chunk's memory grows with the chunk only, and its cache does not depend on any length.
    """
    shape = lambda frames: jax.ShapeDtypeStruct((1, frames, 8, 8, 3), jnp.float32)
    lengths = (17, 65)
    short, long = (memory(whole["decode"].lower(variables, shape(n)).compile()) for n in lengths)
    assert 3.5 < long / short < 4.0  # values computed from weights do not grow
    _, cache = jax.eval_shape(steps["decode"], variables, shape(1))
    output, after = jax.eval_shape(steps["decode"], variables, shape(1), cache)
    assert output.shape[1] == 4
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
        lambda a: (a.shape, a.dtype), cache
    )
    chunk = memory(steps["decode"].lower(variables, shape(1), cache).compile())
    assert chunk < short / 6


def test_gradients_are_finite(module):
    """Also for an image, where temporal convolutions see no other frame, and for zero frames."""
    module = module.clone(widths=(4, 6), temporal_downsample=(True,))
    variables = drawn(module)

    @jax.jit
    def gradient(variables, video):
        return jax.grad(lambda variables: jnp.sum(module.apply(variables, video) ** 2))(variables)

    gradients = gradient(variables, VIDEO[:, :1])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    temporal = {True: [], False: []}
    for path, leaf in jax.tree.leaves_with_path(gradients):
        temporal["temporal" in jax.tree_util.keystr(path)].append(np.abs(leaf).max())
    assert len(temporal[True]) == 4 and np.all(np.array(temporal[True]) == 0)
    assert np.all(np.array(temporal[False]) > 0)


def test_causal_convolution_is_numpys():
    """In one dimension, compare with `np.convolve`, which flips its kernel."""
    module = CausalConv(1, (4, 1, 1))
    x, kernel = (
        np.random.default_rng(0).standard_normal(9),
        np.random.default_rng(1).standard_normal(4),
    )
    variables = {
        "params": {"kernel": jnp.asarray(kernel).reshape(4, 1, 1, 1, 1), "bias": jnp.full(1, 0.5)}
    }
    y = module.apply(variables, jnp.asarray(x, jnp.float32).reshape(1, 9, 1, 1, 1))
    np.testing.assert_allclose(np.ravel(y), 0.5 + np.convolve(x, kernel[::-1])[:9], atol=1e-6)


def test_log_variance_is_clipped(variables, whole):
    params = dict(variables["params"])
    bias = 1e3 * np.array([0, 0, 0, -1, 0, 1], np.float32)  # three means and three log-variances
    params["quant_conv"] = params["quant_conv"] | {"bias": bias}
    _, log_variance = whole["encode"]({"params": params}, VIDEO)
    np.testing.assert_array_equal(
        log_variance[..., ::2], np.broadcast_to([-30, 20], (1, 4, 1, 2, 2))
    )


def test_errors(module, variables):
    encode = functools.partial(
        jax.eval_shape, functools.partial(module.apply, variables, method="encode")
    )
    with pytest.raises(ValueError, match=r"has 1 \+ n·4 frames; got 12: leave out the last 3"):
        encode(jnp.zeros((1, 12, 4, 4, 3)))
    with pytest.raises(ValueError, match="multiples of 4; got 4×6: crop or resize"):
        encode(jnp.zeros((1, 1, 4, 6, 3)))
    with pytest.raises(
        ValueError, match=r"after the first has n·4 frames; got 5: leave out the last 1"
    ):
        _, cache = jax.eval_shape(
            functools.partial(apply_chunk, module, method="encode"), variables, VIDEO
        )
        apply_chunk(module, variables, VIDEO[:, :5], cache, method="encode")
    with pytest.raises(ValueError, match="an entry for each of 3 levels but the coarsest; got 3"):
        jax.eval_shape(AutoencoderWan(widths=(4, 6, 8)).init, jax.random.key(0), VIDEO)
    network = functools.partial(AutoencoderWan, temporal_downsample=(True,), latent_channels=2)
    init = lambda **options: jax.eval_shape(network(**options).init, jax.random.key(0), VIDEO)
    with pytest.raises(ValueError, match=r"as many levels; got .* decoder_widths=\(4,\)"):
        init(widths=(4, 6), decoder_widths=(4,))
    with pytest.raises(ValueError, match="average 4 values to 6 features"):
        init(widths=(4, 6), residual=True)


@pytest.fixture(scope="module")
def residual():
    """Wan 2.2's form, with variables in which every part matters."""
    module = AutoencoderWan(
        3, widths=(2, 4, 4), blocks=1, temporal_downsample=(False, True), residual=True
    )
    shapes = jax.eval_shape(module.init, jax.random.key(0), VIDEO[:, :1])
    random = np.random.default_rng(0)
    return module, jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


def test_residual_levels_encode_by_chunks(residual):
    """tests/parity decodes by chunks as diffusers does."""
    module, variables = residual
    mean, _ = jax.jit(functools.partial(module.apply, method="encode"))(variables, VIDEO)
    assert mean.shape == (1, 7, 1, 2, 3)
    step = jax.jit(functools.partial(apply_chunk, module, method="encode"))
    (first, _), cache = step(variables, VIDEO[:, :7])
    (second, _), _ = step(variables, VIDEO[:, 7:], cache)
    assert_close(jnp.concatenate([first, second], axis=1), mean)
