"""PixelCNN++: its published count, and the outputs of the authors' PyTorch port."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.autoregression import mixture_of_logistics
from genjax.devices.cost import multiply_adds
from genjax.models.autoregressive.pixel_cnn_pp import PixelCNNPlusPlus

DATA = np.load(Path(__file__).parent / "data" / "pixel_cnn_pp.npz")
LABELS = jnp.zeros(1, jnp.int32)


@pytest.mark.parametrize(
    ("width", "without_gains", "count"),
    [(160, 53_618_660, 53_659_080), (80, 13_420_580, 13_440_840)],
)
def test_its_parameters_are_as_many_as_published(width, without_gains, count):
    network = PixelCNNPlusPlus((32, 32, 3), width=width)
    levels = jnp.zeros((1, 32, 32, 3), jnp.int32)
    params = jax.eval_shape(network.init, jax.random.key(0), levels, LABELS)["params"]
    sizes = {jax.tree_util.keystr(path): a.size for path, a in jax.tree.leaves_with_path(params)}
    gains = sum(size for path, size in sizes.items() if "gain" in path)
    assert sum(sizes.values()) == count and sum(sizes.values()) - gains == without_gains


def test_outputs_and_likelihood_are_those_of_the_authors_port():
    network = PixelCNNPlusPlus((8, 12, 3), outputs=(20,), width=4, depth=1)
    levels = jnp.asarray(DATA["levels"], jnp.int32)
    labels = jnp.zeros(len(levels), jnp.int32)
    params = converted(state_dict())
    abstract = jax.eval_shape(network.init, jax.random.key(0), levels, labels)["params"]
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    assert shapes(params) == shapes(abstract)
    outputs = jax.jit(network.apply)({"params": params}, levels, labels)
    np.testing.assert_allclose(outputs, DATA["outputs"], atol=1e-4)
    log_probability = mixture_of_logistics(256, 2).log_probability(outputs, levels)
    np.testing.assert_allclose(-log_probability.sum((1, 2, 3)), DATA["loss"], rtol=1e-5)


def test_sampling_by_rows_and_pixels_gives_the_outputs_of_the_whole_picture():
    """With the port's parameters, on 8×12 pixels: two and three at the least size."""
    network = PixelCNNPlusPlus((8, 12, 3), outputs=(20,), width=4, depth=1)
    apply = functools.partial(network.apply, {"params": converted(state_dict())})
    levels = jnp.asarray(DATA["levels"], jnp.int32)
    labels = jnp.zeros(len(levels), jnp.int32)

    @jax.jit
    def one_by_one(levels):
        first, cache = apply(labels, method="prefill")

        def advance(cache, inputs):
            outputs, cache = apply(cache, *inputs, method="step")
            return cache, outputs

        tokens = levels.reshape(len(levels), -1).T[:-1]
        _, others = jax.lax.scan(advance, cache, (tokens, jnp.arange(len(tokens))))
        return jnp.concatenate([first[None], others]).swapaxes(0, 1)

    whole = jnp.repeat(DATA["outputs"].reshape(len(levels), -1, 20), 3, axis=1)
    np.testing.assert_allclose(one_by_one(levels), whole, atol=1e-4)  # as of the whole picture


def test_a_pixel_costs_a_row_of_one_stream_and_a_pixel_of_the_other():
    """With 32 rows this is less than a twentieth of the whole picture."""
    network = PixelCNNPlusPlus((32, 32, 3), width=8, depth=1)
    levels = jnp.zeros((1, 32, 32, 3), jnp.int32)
    params = jax.eval_shape(network.init, jax.random.key(0), levels, LABELS)
    prefill = functools.partial(network.apply, method="prefill")
    cache = jax.eval_shape(prefill, params, LABELS)[1]
    step = functools.partial(network.apply, method="step")
    of_step = multiply_adds(step, params, cache, LABELS, jnp.int32(0))
    assert 0 < of_step < multiply_adds(network.apply, params, levels, LABELS) / 20


def state_dict():
    """Return the port's parameters by name."""
    shapes = json.loads(str(DATA["shapes"]))
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    parts = np.split(DATA["parameters"].astype(np.float32), ends[:-1])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def converted(state):
    """Return genjax's parameters of the port's."""
    params = {}
    for prefix in sorted({name.rpartition(".")[0] for name in state}):
        bias, gain, kernel = (state[f"{prefix}.{n}"] for n in ("bias", "weight_g", "weight_v"))
        if "deconv" in prefix:  # [in out rows columns], normalized for each input, and flipped
            kernel = gain * kernel / np.sqrt((kernel**2).sum((1, 2, 3), keepdims=True))
            kernel = kernel[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
            gain = np.sqrt((kernel**2).sum((0, 1, 2)))
        else:
            kernel = kernel.reshape(*kernel.shape[:2], *(kernel.shape[2:] or (1, 1)))
            kernel = kernel.transpose(2, 3, 1, 0)
        place = params
        for name in path_of(prefix):
            place = place.setdefault(name, {})
        place |= {"bias": bias, "gain": gain.ravel(), "kernel": kernel}
    return params


def path_of(prefix):
    """Return the names of genjax's module, from those of the port's."""
    first, *rest = prefix.split(".")
    whole = {"u_init": "above_start", "nin_out": "out"}
    if first in whole:
        return [whole[first]]
    if first == "ul_init":
        return [["row_start", "left_start"][int(rest[0])]]
    if first in ("up_layers", "down_layers"):
        size, stream, i, conv, _ = rest
        layer, size = ("down", size) if first == "up_layers" else ("up", 2 - int(size))
        names = {"conv_input": "conv_in", "conv_out": "conv_out", "nin_skip": "skip"}
        return [f"{'left' if 'ul' in stream else 'above'}_{layer}_{size}_{i}", names[conv]]
    kind, size = ("half", rest[0]) if "down" in first else ("double", 2 - int(rest[0]))
    return [f"{'left' if 'ul' in first else 'above'}_{kind}_{size}"]
