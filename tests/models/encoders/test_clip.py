import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.encoders.clip import (
    CLIP,
    CLIP_B_16,
    CLIP_B_32,
    CLIP_L_14,
    CLIPText,
    CLIPText_bigG,
    CLIPText_L,
    CLIPVision,
    resize_and_crop,
)
from tests.models.block_options import check_block_options

VOCABULARY, LENGTH, SIZE, DEPTH = 12, 9, 8, 2
END = VOCABULARY - 1
text_encoder = functools.partial(
    CLIPText,
    width=8,
    depth=DEPTH,
    num_heads=2,
    shared_features=6,
    vocabulary_size=VOCABULARY,
    max_length=LENGTH,
    end_token=END,
)
image_encoder = functools.partial(
    CLIPVision, width=12, depth=DEPTH, num_heads=3, shared_features=6, patch_size=4, image_size=SIZE
)


@pytest.fixture(scope="module")
def tokens():
    """Two texts that end at 3 and at 6; padding is the end token too."""
    tokens = np.random.default_rng(0).integers(0, END, (2, LENGTH), np.int32)
    tokens[0, 3:] = tokens[1, 6:] = END
    return tokens


@pytest.fixture(scope="module")
def variables(tokens):
    """Make variables larger than the small initial values, so that every part matters."""
    random = np.random.default_rng(0)
    initial = jax.eval_shape(text_encoder().init, jax.random.key(0), tokens)
    return jax.tree.map(lambda a: 0.5 * random.standard_normal(a.shape, np.float32), initial)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(text_encoder().apply)


@pytest.mark.parametrize(
    "module, expected",
    [
        (CLIPText_L(), 123_060_480),
        (CLIPText_bigG(), 694_659_840),
        (CLIP_B_32(), 151_277_313),  # the count that the authors' example prints
        (CLIP_B_16(), 149_620_737),
        (CLIP_L_14(), 427_616_513),
    ],
)
def test_parameter_counts(module, expected):
    inputs = [jax.ShapeDtypeStruct((1, 77), jnp.int32)]
    if isinstance(module, CLIP):
        inputs.insert(0, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    assert sum(a.size for a in jax.tree.leaves(variables)) == expected


def test_states_begin_at_the_embeddings_and_end_before_the_norm(apply, variables, tokens):
    params, output = variables["params"], apply(variables, tokens)
    assert output.states.shape == (DEPTH + 1, 2, LENGTH, 8)
    embeddings = params["token_embedding"]["embedding"][tokens] + params["position_embedding"]
    np.testing.assert_allclose(output.states[0], embeddings, rtol=1e-6)
    state = np.asarray(output.states[-1], np.float64)
    state = (state - state.mean(-1, keepdims=True)) / np.sqrt(state.var(-1, keepdims=True) + 1e-5)
    expected = state * params["final_norm"]["scale"] + params["final_norm"]["bias"]
    # A few roundings of values of about one.
    np.testing.assert_allclose(output.last, expected, atol=1e-5)


def test_pooled_is_the_state_at_the_first_end(apply, variables, tokens):
    output = apply(variables, tokens)
    np.testing.assert_array_equal(output.pooled, output.last[np.arange(2), [3, 6]])
    highest = jax.jit(text_encoder(end_token=None).apply)
    np.testing.assert_array_equal(highest(variables, tokens).pooled, output.pooled)
    other = jax.jit(text_encoder(end_token=int(tokens[0, 0])).apply)(variables, tokens[:1])
    np.testing.assert_array_equal(other.pooled, output.last[:1, 0])


def test_no_token_looks_at_later_ones(apply, variables, tokens):
    changed = tokens.copy()
    changed[:, 5] = (tokens[:, 5] + 1) % END
    before, after = apply(variables, tokens), apply(variables, changed)
    np.testing.assert_array_equal(before.last[:, :5], after.last[:, :5])
    assert np.abs(before.last - after.last)[:, 5:].max(axis=-1).min() > 1e-3


def test_masked_tokens_get_no_attention(apply, variables, tokens):
    mask = np.ones(tokens.shape, bool)
    mask[:, 2] = False
    changed = tokens.copy()
    changed[:, 2] = (tokens[:, 2] + 1) % END
    before, after = apply(variables, tokens, mask), apply(variables, changed, mask)
    np.testing.assert_array_equal(np.delete(before.last, 2, 1), np.delete(after.last, 2, 1))
    assert np.abs(before.last - apply(variables, tokens).last)[:, 3:].max() > 1e-3


def test_options_reach_the_blocks(variables, tokens):
    check_block_options(text_encoder(), variables, tokens, products=7)


def test_param_dtype_is_that_of_every_parameter(tokens):
    module = CLIP(text_encoder(param_dtype=jnp.bfloat16), image_encoder(param_dtype=jnp.bfloat16))
    variables = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), tokens
    )
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}


def test_cosines_of_pictures_and_texts(tokens):
    clip = CLIP(text_encoder(depth=1), image_encoder(depth=1))
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    expected = jax.eval_shape(clip.init, jax.random.key(0), images, tokens)
    variables = jax.tree.map(lambda a: random.standard_normal(a.shape, np.float32), expected)

    def apply(name, *inputs):
        return jax.jit(functools.partial(clip.apply, method=name))(variables, *inputs)

    image_vectors, text_vectors = apply("embed_images", images), apply("embed_text", tokens)
    for vectors in (image_vectors, text_vectors):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    cosines = image_vectors @ text_vectors.T
    scale = np.exp(variables["params"]["logit_scale"])
    np.testing.assert_allclose(apply("__call__", images, tokens), scale * cosines, rtol=1e-5)
    np.testing.assert_allclose(apply("similarity", images, tokens), np.diag(cosines), rtol=1e-5)


def test_initial_scale_of_logits_is_that_of_the_paper(tokens):
    """Radford et al. 2021, section 2.5."""
    init = jax.jit(
        lambda *inputs: CLIP(text_encoder(), image_encoder()).init(*inputs)["params"]["logit_scale"]
    )
    scale = init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), tokens)
    np.testing.assert_allclose(np.exp(scale), 1 / 0.07, rtol=1e-6)


@pytest.mark.parametrize("height, width", [(12, 20), (20, 10), (7, 7)])
def test_pictures_are_resized_and_cropped_in_the_middle(height, width):
    prepare = jax.jit(lambda images: resize_and_crop(images, 6))
    images = np.random.default_rng(0).uniform(-1, 1, (1, height, width, 3)).astype(np.float32)
    prepared = prepare(images)
    assert prepared.shape == (1, 6, 6, 3)
    for axis in (1, 2):  # the middle of the mirror image is the mirrored middle
        np.testing.assert_allclose(
            prepare(np.flip(images, axis)), np.flip(prepared, axis), atol=1e-5
        )
    np.testing.assert_allclose(prepare(np.full_like(images, 0.3)), 0.3, rtol=1e-5)


def test_overshoot_is_cut():
    images = jnp.where(jnp.arange(4) < 2, -1.0, 1.0)[None, :, None, None] * jnp.ones((1, 4, 4, 3))
    prepared = jax.jit(lambda images: resize_and_crop(images, 16))(images)
    # Cubic interpolation of a step overshoots at its ends.
    assert prepared.min() == -1 and prepared.max() == 1
    np.testing.assert_array_equal(resize_and_crop(images, 4), images)


def test_faults_are_named(tokens):
    with pytest.raises(ValueError, match="10 tokens; this network takes at most 9"):
        text_encoder().init(jax.random.key(0), jnp.zeros((1, LENGTH + 1), int))
    with pytest.raises(ValueError, match=r"shape \(1, 8, 4, 3\); this network takes 8×8 pixels"):
        image_encoder().init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE // 2, 3)))
