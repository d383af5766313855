"""A transformer of sound and video: what its streams know of each other, and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.sound_and_video import SoundAndVideoDiT, WithActions
from genjax.models.transformers.video_dit import VideoDiT
from genjax.nn import Text

SIDES, PATCH = (4, 4, 6), (2, 2, 2)
LENGTH = 12
SIZES = dict(video_width=24, sound_width=16, depth=2, num_heads=2)
RATES = dict(frame_rate=4.0, sound_rate=16.0)  # a clip of a second with sound of 3/4 of a second
NETWORK = SoundAndVideoDiT(PATCH, 2, **SIZES, **RATES, absolute_positions=True)
TOLD = Text(jnp.ones((2, 3, 5)), None, jnp.arange(3) < jnp.array([[3], [1]]))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


X = {"video": normal(0, 2, *SIDES, 3), "sound": normal(1, 2, LENGTH, 2)}
T = {"video": jnp.asarray([0.2, 0.9]), "sound": jnp.asarray([0.7, 0.4])}


def drawn(network, told):
    """Return variables with which the streams read each other."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), X, T, told)
    generator = np.random.default_rng(2)
    is_norm = lambda path: "_norm" in jax.tree_util.keystr(path)
    draw = lambda a: np.float32(0.3) * generator.standard_normal(a.shape, np.float32)
    return jax.tree.map_with_path(lambda path, a: 1.5 * is_norm(path) + draw(a), shapes)


@functools.cache
def perturbed():
    return drawn(NETWORK, TOLD)


@jax.jit
def outputs(variables, x, t, starts):
    return NETWORK.apply(variables, x, t, TOLD, starts)


def start(video=0.0, sound=0.0):
    return {"video": jnp.float32(video), "sound": jnp.float32(sound)}


def without_exchange(variables):
    """Return the variables with which nothing of one stream reaches the other."""

    def cut(path, a):
        names = jax.tree_util.keystr(path)
        return jnp.zeros_like(a) if "_from_" in names and "projection" in names else a

    return jax.tree.map_with_path(cut, variables)


@pytest.mark.parametrize("name", ["video", "sound"])
def test_streams_that_do_not_exchange_are_unimodal_models(name):
    """With the same parameters, each stream is `VideoDiT`, for which sound is frames of one pixel.

    A tree of one modality gives the same, without the parameters of the other.
    """
    variables, width = without_exchange(perturbed()), SIZES[f"{name}_width"]
    both, params = outputs(variables, X, T, start()), variables["params"]
    blocks = params["blocks"][name]
    patch, x = (PATCH, X[name]) if name == "video" else ((2, 1, 1), X[name][:, :, None, None])
    sizes = dict(width=width, depth=2, num_heads=2)
    unimodal = VideoDiT(patch, **sizes, absolute_positions=True)
    expected = jax.jit(unimodal.apply)(
        {"params": params[name] | {"blocks": blocks}}, x, T[name], TOLD
    )
    np.testing.assert_array_equal(both[name], expected.reshape(X[name].shape))
    own = {"params": {name: params[name], "blocks": {name: blocks}}}
    alone = jax.jit(NETWORK.apply)(own, {name: X[name]}, {name: T[name]}, TOLD)
    np.testing.assert_array_equal(both[name], alone[name])


def test_a_network_of_video_becomes_the_videos_stream():
    """A clip without sound gets the same output; parameters of both modalities stay."""
    network = VideoDiT(PATCH, width=24, depth=2, num_heads=2, absolute_positions=True)
    joint = perturbed()["params"]
    params = joint["video"] | {"blocks": joint["blocks"]["video"]}
    adopted = jax.jit(NETWORK.apply)(
        {"params": NETWORK.adopted(params)}, {"video": X["video"]}, {"video": T["video"]}, TOLD
    )
    expected = jax.jit(network.apply)({"params": params}, X["video"], T["video"], TOLD)
    np.testing.assert_array_equal(adopted["video"], expected)
    for other in (joint, {"stem": {}}, {"blocks/video/attention/query/kernel": {}}):  # an adapter
        assert NETWORK.adopted(other) is other


def test_a_new_network_does_not_exchange():
    variables = jax.jit(NETWORK.init)(jax.random.key(0), X, T, TOLD)
    jax.tree.map(np.testing.assert_array_equal, without_exchange(variables), variables)


def test_streams_read_each_other():
    """Each output depends on both modalities and on both noise levels, but not across examples."""
    before = outputs(perturbed(), X, T, start())
    for name in X:
        for inputs in (
            (X | {name: X[name].at[0].add(1)}, T),
            (X, T | {name: T[name].at[0].set(0)}),
        ):
            after = outputs(perturbed(), *inputs, start())
            for each in X:
                change = np.abs(after[each] - before[each])
                assert change[0].max() > 1e-3 and change[1].max() == 0, (name, each)


def test_only_the_delay_between_the_streams_matters():
    at = lambda **seconds: outputs(perturbed(), X, T, start(**seconds))
    aligned, later, delayed = at(), at(video=1.5, sound=1.5), at(sound=0.25)
    for name in X:
        largest = np.abs(aligned[name]).max()
        # Angles of some hundred radians are rounded to float32.
        np.testing.assert_allclose(later[name], aligned[name], rtol=0, atol=1e-4 * largest)
        assert np.abs(delayed[name] - aligned[name]).max() > 1e-2 * largest


def test_a_token_is_in_the_middle_of_its_patch():
    """Patches of 2 frames at 4 Hz last half a second, those of 2 samples at 16 Hz an eighth."""
    video, sound = (NETWORK._stream(name, X[name], T[name]) for name in ("video", "sound"))
    np.testing.assert_array_equal(video.middles, np.repeat([0.25, 0.75], 6))
    np.testing.assert_array_equal(sound.middles, (np.arange(6) + 0.5) / 8)


def test_a_frames_action_changes_the_modulation_of_its_patch():
    """The streams are cut, and space and time are apart, so a patch of 2 frames knows itself."""
    network = NETWORK.clone(num_classes=3, num_actions=5, factorized=True)
    told = lambda *actions: WithActions(jnp.array([0, 3]), jnp.array([actions, (5, 5, 5, 5)]))
    variables = without_exchange(drawn(network, told(0, 1, 2, 3)))
    blocks = variables["params"]["blocks"]["video"]
    blocks["time_attention"]["projection"] = jax.tree.map(
        jnp.zeros_like, blocks["time_attention"]["projection"]
    )
    apply = jax.jit(lambda told: network.apply(variables, X, T, told))
    before, after = apply(told(0, 1, 2, 3)), apply(told(0, 1, 2, 4))
    change = np.abs(after["video"] - before["video"]).max((2, 3, 4))
    assert change[0, 2:].min() > 1e-3 and change[0, :2].max() == change[1].max() == 0
    np.testing.assert_array_equal(after["sound"], before["sound"])
    swapped = apply(told(1, 0, 2, 3))  # a patch has the mean of its frames' actions
    np.testing.assert_allclose(swapped["video"], before["video"], rtol=0, atol=1e-5)


def test_sound_divides_into_patches():
    x = {"sound": jnp.ones((1, 5, 1))}
    with pytest.raises(ValueError, match="5×1×1 .* do not divide into patches of 2×1×1"):
        NETWORK.init(jax.random.key(0), x, {"sound": jnp.ones(1)}, TOLD)
