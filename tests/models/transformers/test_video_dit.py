"""A small transformer of video: causality, its cache, and clips of any size packed in rows."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.models.transformers.video_dit import VideoDiT
from genjax.nn import Text, attention_choices, patchify_video, unpatchify_video
from genjax.nn.packing import Packing
from tests.virtual_devices import run

SIDES, PATCH = (3, 4, 6), (1, 2, 2)
CLASSES = VideoDiT(PATCH, width=24, depth=2, num_heads=3, num_classes=3, absolute_positions=True)
WORDS = VideoDiT(PATCH, width=32, depth=2, num_heads=2)
CAUSAL = {
    "full": CLASSES.clone(causal=True),
    "factorized": CLASSES.clone(causal=True, factorized=True),
}
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape, np.float32))


def inputs(sides=SIDES, batch=2):
    t = jnp.asarray(RANDOM.random((batch, sides[0]), np.float32))
    return normal(batch, *sides, 3), t, jnp.arange(batch) % 4


def perturbed(network, *arguments):
    """Return variables with which attention is far from an average."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *arguments)
    is_norm = lambda path: "_norm" in jax.tree_util.keystr(path)
    draw = lambda path, a: np.float32(0.3) * RANDOM.standard_normal(a.shape, np.float32)
    return jax.tree.map_with_path(lambda path, a: 1.5 * is_norm(path) + draw(path, a), shapes)


@functools.cache
def causal(name):
    """Return a causal network, its variables, inputs and output."""
    network, arguments = CAUSAL[name], inputs()
    variables = perturbed(network, *arguments)
    return network, variables, arguments, jax.jit(network.apply)(variables, *arguments)


@pytest.mark.parametrize("name", CAUSAL)
def test_no_frame_has_a_gradient_by_later_ones(name):
    network, variables, (x, t, labels), _ = causal(name)
    weights = normal(SIDES[0], *x.shape)

    @jax.jit
    def gradients(x, t):
        def of_frame(weights, i):
            loss = lambda x, t: jnp.sum((weights * network.apply(variables, x, t, labels))[:, i])
            return jax.grad(loss, argnums=(0, 1))(x, t)

        return jax.vmap(of_frame)(weights, jnp.arange(SIDES[0]))

    by_x, by_t = gradients(x, t)
    by_frame = np.abs(by_x).max((1, 3, 4, 5)), np.abs(by_t).max(1)  # [outputs inputs]
    for seen in by_frame:
        assert np.all(seen[np.triu_indices(3, 1)] == 0) and np.all(seen[np.tril_indices(3)] > 1e-3)


def test_no_frame_has_a_gradient_by_frames_before_its_window():
    network, arguments = CAUSAL["full"].clone(depth=1, window=2), inputs()
    variables = perturbed(network, *arguments)
    x, *others = arguments
    loss = lambda x: jnp.sum(network.apply(variables, x, *others)[:, 2] ** 2)
    by_frame = np.abs(jax.jit(jax.grad(loss))(x)).max((0, 2, 3, 4))
    assert by_frame[0] == 0 and np.all(by_frame[1:] > 1e-3)


def roll_out(network, variables, x, t, labels, sizes):
    """Return the output, some frames at a time."""
    cache, outputs, start = network.empty_cache(len(x), *x.shape[1:4]), [], 0
    extend = jax.jit(functools.partial(network.apply, method="extend"))
    for size in sizes:
        part = slice(start, start + size)
        output, cache = extend(variables, x[:, part], t[:, part], labels, cache)
        outputs.append(output)
        start += size
    return jnp.concatenate(outputs, axis=1)


@pytest.mark.parametrize(("name", "sizes"), [("full", (1, 1, 1)), ("factorized", (2, 1))])
def test_the_cache_gives_what_the_whole_computation_gives(name, sizes):
    network, variables, arguments, expected = causal(name)
    outputs = roll_out(network, variables, *arguments, sizes)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_only_a_causal_network_takes_a_cache():
    with pytest.raises(ValueError, match="causal=False"):
        CLASSES.apply({}, *inputs(), CAUSAL["full"].empty_cache(2, *SIDES), method="extend")


@pytest.mark.parametrize(("causal", "window"), [(False, 2), (True, 0)])
def test_windows_that_would_hide_nothing_or_all_are_refused(causal, window):
    network = CLASSES.clone(causal=causal, window=window)
    with pytest.raises(ValueError, match=f"window={window} and causal={causal}: a window has 1"):
        jax.eval_shape(network.init, jax.random.key(0), *inputs())


def differences(network):
    """Return by how much outputs of an even input differ in a frame, and from frame to frame."""
    x, t, labels = inputs(batch=1)
    arguments = jnp.ones_like(x), jnp.full_like(t, 0.5), labels
    output = jax.jit(network.apply)(perturbed(network, *arguments), *arguments)
    tokens = patchify_video(output, PATCH)[0].reshape(SIDES[0], -1, 12)
    return [float(np.ptp(np.asarray(tokens), axis).max()) for axis in (1, 0)]


def test_absolute_positions_tell_the_patches_of_an_even_input_apart():
    assert min(differences(CLASSES)) > 1e-2
    assert max(differences(CLASSES.clone(absolute_positions=False))) < 1e-4
    # Each frame is alone here, so distances tell nothing. Roll-outs go on to any frame.
    within, between = differences(CLASSES.clone(causal=True, window=1))
    assert within > 1e-2 and between < 1e-4


@functools.cache
def clips():
    """Return a clip and its time and class, and others to pack it with, an image among them."""
    parts = [inputs(sides, 1) for sides in ((3, 4, 6), (1, 8, 8), (2, 6, 4))]
    return [(x, t, jnp.array([i])) for i, (x, t, _) in enumerate(parts)]


patches_of = jax.jit(lambda x: patchify_video(x, PATCH)[0])
video_of = jax.jit(lambda patches: unpatchify_video(patches, PATCH, SIDES))


def packed(parts, length):
    """Return the arguments of `packed` for clips, and their packing.

    Packed by NumPy, which compiles nothing.
    """
    parts = jax.device_get(parts)
    grids = [tuple((np.array(x.shape[1:4]) // PATCH).tolist()) for x, _, _ in parts]
    packing = Packing.of(grids, length, slots=3)
    places = [int(np.prod(grid[1:])) for grid in packing.grids]
    times = [np.repeat(t[0], n) for (_, t, _), n in zip(parts, places, strict=True)]
    tokens = packing.pack([np.asarray(patches_of(x)) for x, _, _ in parts])
    labels = packing.pack_conditions(np.concatenate([label for _, _, label in parts]))
    told = packing.pack(times), labels, packing.segments, packing.positions
    return (tokens, *told), packing


def derivative(network, packed):
    """Return a jitted function to outputs, and gradients of their product with weights."""

    @jax.jit
    def compute(variables, x, weights, *told):
        method = "packed" if packed else "__call__"
        apply = lambda variables, x: network.apply(variables, x, *told, method=method)
        outputs, pullback = jax.vjp(apply, variables, x)
        return outputs, *pullback(weights)

    return compute


@functools.cache
def alone():
    """Return variables, weights of the first clip's outputs, and its output and gradients."""
    x, t, label = clips()[0]
    variables, weights = perturbed(CLASSES, x, t, label), normal(*x.shape)
    return variables, weights, derivative(CLASSES, packed=False)(variables, x, weights, t, label)


def check(derivative, length=64):
    """Assert that a clip's output and gradients are the same alone, padded, and with others."""
    variables, weights, expected = alone()
    for parts in (clips()[:1], clips()):
        (tokens, *told), packing = packed(parts, length)
        weighted = [weights, *(np.zeros(x.shape, np.float32) for x, _, _ in parts[1:])]
        weighted = packing.pack([np.asarray(patches_of(each)) for each in weighted])
        made = jax.device_get(derivative(variables, tokens, weighted, *told))
        outputs, by_variables, by_tokens = made
        outputs, by_clip = (packing.unpack(rows) for rows in (outputs, by_tokens))
        whole = lambda patches: video_of(patches[0][None])
        # Sums of float32 in another order.
        same = lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=2e-5 * max(1.0, np.abs(b).max())
        )
        jax.tree.map(same, (whole(outputs), by_variables, whole(by_clip)), expected)
        assert all(np.all(np.asarray(gradient) == 0) for gradient in by_clip[1:])


@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_a_clip_is_the_same_alone_padded_and_packed(form, monkeypatch):
    alone()
    if form == "chunked":
        monkeypatch.setattr(sys.modules["genjax.nn.attention.dispatch"], "PLAIN_BYTES", 0)
    with attention_choices() as choices:
        check(derivative(CLASSES, packed=True))
    assert {choice.form for choice in choices} == {form}


RING = """
import jax
from genjax.devices import make_mesh
from genjax.nn import attention_choices
from tests.models.transformers import test_video_dit as tests
tests.alone()
derivative = tests.derivative(tests.CLASSES, packed=True)

def over_ring(*arguments):
    with jax.set_mesh(make_mesh({"context": 2}, 1)):
        return jax.device_get(derivative(*arguments))

with attention_choices() as choices:
    tests.check(over_ring, 256)
print(sorted(choice.form for choice in choices))
"""


@pytest.mark.slow
def test_a_clip_is_the_same_on_a_ring_of_devices():
    """Each device has half of a row of 256 tokens; three heads cannot be exchanged."""
    assert run(["-c", RING], 2) == "['ring']\n"


@pytest.mark.parametrize("name", CAUSAL)
def test_packed_clips_are_causal_and_factorized_too(name):
    network, variables, arguments, expected = causal(name)
    x, t, labels = jax.device_get(arguments)
    parts = [(x[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(2)]
    image = normal(1, 1, 8, 10, 3), jnp.ones((1, 1)), jnp.array([3])
    (tokens, *told), packing = packed([*parts, image], 24)  # each has a row of its own
    outputs = jax.jit(functools.partial(network.apply, method="packed"))(variables, tokens, *told)
    outputs = video_of(np.stack(packing.unpack(jax.device_get(outputs))[:2]))
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_packed_clips_read_their_own_texts():
    (x, t, _), mask = inputs(), jnp.arange(5) < jnp.array([[5], [2]])
    text = Text(normal(2, 5, 7), None, mask)
    variables = perturbed(WORDS, x, t, text)
    expected = jax.jit(WORDS.apply)(variables, x, t, text)
    x, t, label = *jax.device_get((x, t)), np.array([0])
    (tokens, times, _, segments, positions), packing = packed(
        [(x[i : i + 1], t[i : i + 1], label) for i in range(2)], 40
    )
    texts = jax.tree.map(packing.pack_conditions, jax.device_get(text))
    outputs = jax.jit(functools.partial(WORDS.apply, method="packed"))(
        variables, tokens, times, texts, segments, positions
    )
    outputs = video_of(np.stack(packing.unpack(jax.device_get(outputs))))
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    other = text.replace(tokens=text.tokens.at[0].add(normal(5, 7)))
    change = np.abs(jax.jit(WORDS.apply)(variables, x, t, other) - expected).max((1, 2, 3, 4))
    assert change[0] > 1e-2 and change[1] == 0


def test_the_initialised_network_returns_zeros():
    output, variables = jax.jit(WORDS.init_with_output)(
        jax.random.key(0), normal(2, *SIDES, 3), jnp.ones(2), Text(normal(2, 5, 7))
    )
    assert output.shape == (2, *SIDES, 3) and np.all(output == 0)
    assert variables.keys() == {"params"}
