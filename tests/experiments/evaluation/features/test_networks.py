"""Pretrained networks as functions of pictures, read from files, and batches over devices."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evaluation.features import networks
from experiments.evaluation.features.networks import load_network
from genjax import pretrained
from genjax.data import to_float
from genjax.models.encoders.dinov2 import Dinov2, dinov2_features
from genjax.models.encoders.inception import Inception, preprocess_clean, preprocess_pytorch
from tests.experiments.stand_in import pictures, random_variables
from tests.virtual_devices import lines_of


def test_dinov2_of_a_folder(tmp_path):
    module = Dinov2(width=8, depth=1, num_heads=2, image_size=28)
    variables = random_variables(module, jnp.zeros((1, 28, 28, 3)))
    pretrained.save(tmp_path, module, variables)
    network, images = load_network("dinov2", str(tmp_path)), pictures(3, 0, shape=(6, 6, 1))
    assert (
        network.weights == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    )
    features, logits = networks.features_of(network, images)
    assert logits is None
    expected = jax.jit(lambda v, x: dinov2_features(module, v, x))(variables, to_float(images))
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)
    assert np.ptp(features, axis=0).max() > 0.02  # pictures differ by more than the tolerance


def test_inception_of_a_file(tmp_path):
    """The weights are zeros, which compress well; tests/parity checks what the network computes."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), image)
    names = dict(kernel="weight", scale="weight", mean="running_mean", var="running_var")
    tensors = {}
    for keys, leaf in jax.tree.leaves_with_path(shapes):
        *words, name = (key.key for key in keys[1:])
        shape = leaf.shape if leaf.ndim < 2 else (*leaf.shape[:-3:-1], *leaf.shape[:-2])
        tensors[".".join([*words, names.get(name, name)])] = np.zeros(shape, np.float32)
    np.savez_compressed(tmp_path / "fid.npz", **tensors)
    network = load_network("inception", str(tmp_path / "fid.npz"))
    outputs = jax.eval_shape(
        network.apply, network.variables, jax.ShapeDtypeStruct((3, 8, 8, 1), np.uint8)
    )
    assert [(a.shape, a.dtype) for a in outputs] == [
        ((3, 2048), np.float32),
        ((3, 1008), np.float32),
    ]
    assert network.weights == hashlib.sha256((tmp_path / "fid.npz").read_bytes()).hexdigest()


def test_inceptions_of_two_packages_differ_in_preprocessing(monkeypatch):
    monkeypatch.setattr(networks.inception, "load", lambda path: (Inception(), {}))
    monkeypatch.setattr(networks, "weights_digest", lambda path: "abc")
    features = lambda variables, images, preprocess: (preprocess(images), "logits")
    monkeypatch.setattr(networks, "inception_features", features)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 900, 900, 3)).astype(np.uint8)
    found = {}
    for name, preprocess in (("clean", preprocess_clean), ("pytorch", preprocess_pytorch)):
        network = load_network(f"{name}_inception", "two_packages.npz")
        found[name], logits = network.apply({}, jnp.asarray(pictures))
        assert logits is None  # the Inception score is of FID's own preprocessing
        np.testing.assert_array_equal(found[name], preprocess(to_float(jnp.asarray(pictures))))
        # A filter of three pixels halves the deviation of noise, and more.
        assert (np.std(found[name]) < 0.3) == network.antialiasing == (name == "clean")


def test_torchvisions_inception_gives_no_fid(monkeypatch):
    monkeypatch.setattr(networks.inception, "load", lambda path: (Inception(1000, fid=False), {}))
    message = "weights.npz holds an Inception of 1000 classes; FID needs the one of 1008"
    with pytest.raises(ValueError, match=message):
        load_network("inception", "weights.npz")


def test_batches_are_split_over_devices():
    (found,) = lines_of("tests.experiments.feature_batches", 4)
    assert found == {"batches": [256, 256, 89], "devices": [4]}
