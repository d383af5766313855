import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.wan import Wan, wan_1_3b, wan_5b, wan_14b
from genjax.nn import Text
from tests.models.block_options import check_block_options

WIDTH, DEPTH, FRAMES, CHANNELS = 24, 2, 3, 5


def small(**options):
    return Wan(width=WIDTH, depth=DEPTH, num_heads=2, mlp_features=30, **options)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(1), 2)
    text = Text(jax.random.normal(keys[0], (2, 5, 7)), mask=jnp.arange(5) < jnp.array([[5], [2]]))
    x = jax.random.normal(keys[1], (2, FRAMES, 4, 6, CHANNELS))
    return x, jnp.array([0.2, 0.7]), text


@pytest.fixture(scope="module")
def perturbed(inputs):
    """Parameters away from the initialisation, where every part of the network matters."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(small().init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda a: 0.3 * random.standard_normal(a.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(small().apply)


def shapes_of(module, channels, image_tokens=None, features=1280):
    zeros = jnp.zeros
    image = None if image_tokens is None else zeros((1, image_tokens, features))
    text = Text(zeros((1, 3, 4096)))
    inputs = zeros((1, 1, 2, 2, channels)), zeros(1), text, image
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))


@pytest.mark.parametrize(
    ("module", "channels", "image_tokens", "count"),
    [
        (wan_1_3b(), 16, None, 1_418_996_800),
        (wan_14b(), 16, None, 14_288_491_584),
        (wan_14b(out_channels=16, takes_image=True), 36, 257, 16_394_878_784),
        (
            wan_14b(out_channels=16, takes_image=True, image_positions=514),
            36,
            514,
            16_395_536_704,
        ),
        (wan_14b(out_channels=16), 36, None, 14_288_901_184),
        (wan_5b(), 48, None, 4_999_787_712),
    ],
    ids=["1.3B", "14B", "I2V-14B", "FLF2V-14B", "I2V-A14B", "TI2V-5B"],
)
def test_published_sizes_have_as_many_parameters(module, channels, image_tokens, count):
    shapes = shapes_of(module, channels, image_tokens)
    assert sum(a.size for a in jax.tree.leaves(shapes)) == count
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert module.rotary_features == (44, 42, 42)


@pytest.mark.parametrize(
    ("module", "sides", "tokens"),
    [(wan_1_3b(), (21, 60, 104), 32_760), (wan_14b(), (21, 90, 160), 75_600)],
    ids=["480p", "720p"],
)
def test_81_frames_have_the_published_number_of_tokens(module, sides, tokens):
    patches = [side // size for side, size in zip(sides, module.patch_size, strict=True)]
    assert np.prod(patches) == tokens


def test_initialisation_predicts_zero(inputs):
    output, variables = jax.jit(small().init_with_output)(jax.random.key(0), *inputs)
    assert np.all(output == 0)
    table = np.asarray(variables["params"]["blocks"]["modulation"]["table"])
    assert table.shape == (DEPTH, 6, WIDTH)
    # N(0, 1/width): 288 numbers have that deviation but for 4 %, so four times that.
    np.testing.assert_allclose(table.std() * np.sqrt(WIDTH), 1, atol=4 * 0.042)
    # Xavier's bound, as in wan/modules/model.py: the largest of 3,456 uniform numbers is near it.
    largest = np.abs(variables["params"]["modulation"]["kernel"]).max()
    np.testing.assert_allclose(largest, np.sqrt(6 / (WIDTH + 6 * WIDTH)), rtol=0.01)


def test_time_and_text_matter_and_each_to_its_own_example(apply, perturbed, inputs):
    x, t, text = inputs
    output = np.asarray(apply(perturbed, *inputs))
    padded = text.replace(tokens=jnp.where(text.mask[..., None], text.tokens, 1e3))
    np.testing.assert_array_equal(apply(perturbed, x, t, padded), output)
    others = dict(
        x=(x.at[0].add(1.0), t, text),
        t=(x, t.at[0].add(0.1), text),
        text=(x, t, text.replace(tokens=text.tokens.at[0].add(1.0))),
    )
    for name, other in others.items():
        change = np.abs(apply(perturbed, *other) - output).max((1, 2, 3, 4))
        assert change[0] > 1e-2 and change[1] == 0, name


def test_equal_times_of_frames_or_tokens_are_the_time_of_the_example(apply, perturbed, inputs):
    x, t, text = inputs
    expected = apply(perturbed, *inputs)
    for groups in (1, FRAMES, FRAMES * 2 * 3):
        output = apply(perturbed, x, jnp.broadcast_to(t[:, None], (2, groups)), text)
        # The same numbers in float32, but vectors per token may be fused otherwise.
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_frames_time_is_that_of_its_tokens_alone(perturbed, inputs):
    """Without attention between tokens, another time of the first frame changes that frame only."""
    x, t, text = inputs
    module = small()
    variables = jax.tree.map(lambda a: a, perturbed)
    attention = variables["params"]["blocks"]["self_attention"]
    attention["projection"] = jax.tree.map(jnp.zeros_like, attention["projection"])
    apply = jax.jit(module.apply)
    times = jnp.broadcast_to(t[:, None], (2, FRAMES))
    change = apply(variables, x, times.at[:, 0].set(0.0), text) - apply(variables, x, times, text)
    changed = np.abs(change).max((0, 2, 3, 4))
    assert changed[0] > 1e-2 and np.all(changed[1:] == 0)


def test_any_axis_of_a_video_has_positions(apply, perturbed, inputs):
    """Patches in another order, and back, give another output, along each axis."""
    x, t, text = inputs
    output = apply(perturbed, *inputs)
    for axis in (1, 2, 3):
        size = 1 if axis == 1 else 2
        flip = lambda a, axis=axis, size=size: jnp.flip(
            a.reshape(*a.shape[:axis], -1, size, *a.shape[axis + 1 :]), axis
        ).reshape(a.shape)
        assert np.abs(flip(apply(perturbed, flip(x), t, text)) - output).max() > 1e-2


def test_options_reach_the_blocks_and_bfloat16_computes_near_float32(apply, perturbed, inputs):
    check_block_options(small(), perturbed, *inputs, products=15)
    expected = apply(perturbed, *inputs)
    output = jax.jit(small(dtype=jnp.bfloat16).apply)(perturbed, *inputs)
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
    # bfloat16 rounds by 2⁻⁹ = .002 relative; a dozen products add up to a few times that.
    assert 1e-4 < error < 0.02


def test_mistakes_are_named(inputs):
    x, t, text = inputs
    init = lambda module, *args: jax.eval_shape(module.init, jax.random.key(0), *args)
    image = jnp.zeros((2, 4, 6))
    with pytest.raises(ValueError, match="takes_image=True, and image is None"):
        init(small(takes_image=True), *inputs)
    with pytest.raises(ValueError, match="takes_image=False, and image is given"):
        init(small(), *inputs, image)
    with pytest.raises(ValueError, match="image has 4 tokens, and image_positions=6"):
        init(small(takes_image=True, image_positions=6), *inputs, image)
    with pytest.raises(ValueError, match=r"t has the shape \(2, 4\), and a video has 18 tokens"):
        init(small(), x, jnp.zeros((2, 4)), text)
    with pytest.raises(ValueError, match="3×4×5 .* do not divide into patches of 1×2×2"):
        init(small(), x[:, :, :, :5], t, text)
