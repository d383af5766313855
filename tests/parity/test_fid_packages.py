"""FID as torch-fidelity and clean-fid compute it: their formulas, their resizing, their network.

Both packages' Inception gets the same random weights as ours, from a file in place of a download.

Measured: distances differ by 2e-14 of their value, and features by less than 9e-7 of the largest.
"""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.linalg
import torch
from cleanfid import fid, inception_pytorch
from cleanfid.features import feature_extractor
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch_fidelity import metric_fid
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import inception_v3

from genjax import metrics
from genjax.models.encoders import inception
from genjax.pretrained.inception import load

from .test_inception import randomize


def features_like_inception(seed, count, width=48):
    """Return features that are not negative, correlated, and of very different variances."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width, width)) * np.geomspace(1, 1e-2, width)
    return np.maximum(generator.normal(size=(count, width)) @ mixing + 0.3, 0)


def by_torch_fidelity(a, b):
    statistics = (metric_fid.fid_features_to_statistics(torch.from_numpy(each)) for each in (a, b))
    found = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    return found["frechet_inception_distance"]


@pytest.mark.parametrize("distance", [by_torch_fidelity, fid.fid_from_feats])
def test_formulas_agree(distance, monkeypatch):
    # clean-fid also takes SciPy's estimate of the error, which SciPy 1.18 no longer returns.
    root = lambda product, disp: (scipy.linalg.sqrtm(product), None)
    monkeypatch.setattr(fid, "linalg", SimpleNamespace(sqrtm=root))
    a, b = features_like_inception(0, 700), features_like_inception(1, 500)
    assert metrics.frechet_distance(a, b) == pytest.approx(distance(a, b), rel=1e-10)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """Return the tensors of FID's network, and a file of them for each package."""
    network = inception_v3(weights=None, init_weights=False, num_classes=1008, aux_logits=False)
    tensors, folder = randomize(network).state_dict(), tmp_path_factory.mktemp("inception")
    torch.save(tensors, folder / "weights.pth")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(folder / "weights.npz", **arrays)
    module, variables = load(folder / "weights.npz")
    assert module == inception.Inception()
    return tensors, folder / "weights.pth", variables


@pytest.fixture(scope="module")
def images():
    """Return pictures that Inception's preprocessing enlarges along one side and reduces along one.

    Patches make features differ between pictures.
    """
    patches = np.random.default_rng(0).integers(0, 256, (2, 6, 9, 3)).astype(np.uint8)
    return patches.repeat(9, axis=1).repeat(43, axis=2)


def assert_features_agree(ours, theirs):
    assert theirs.std(axis=0).mean() > 0.02 * theirs.std()
    # float32 on both sides: some fifty layers, each rounded by about 1e-7
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


# One program for all ways to prepare images, which are programs of their own.
of_prepared = jax.jit(functools.partial(inception.inception_features, preprocess=lambda x: x))


def our_features(variables, images, preprocess):
    prepared = jax.jit(preprocess)(images / np.float32(127.5) - 1)
    return [np.asarray(each) for each in of_prepared(variables, prepared)]


def test_torch_fidelity_agrees(random_weights, images):
    _, path, variables = random_weights
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
    )
    theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    ours = our_features(variables, images, inception.preprocess)
    for mine, other in zip(ours, theirs, strict=True):
        assert_features_agree(mine, other.numpy())


# clean-fid calls torchvision with an argument that has become `weights`.
@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_clean_fid_agrees(random_weights, images, mode, monkeypatch):
    tensors, _, variables = random_weights
    given = lambda url, progress: tensors
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", given)
    if mode == "clean":
        # Its file is a TorchScript of StyleGAN's authors, so their layers take its place.
        network = torch.nn.Module.__new__(InceptionV3W)
        torch.nn.Module.__init__(network)
        layers = inception_pytorch.InceptionV3(normalize_input=False, resize_input=False)
        network.layers, network.resize_inside = torch.nn.Sequential(*layers.blocks), False
        network.eval()
    else:
        network = feature_extractor("pytorch_inception", torch.device("cpu"), False, False)
    resize = build_resizer(mode)
    resized = np.stack([resize(image) for image in images]).astype(np.float32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(resized.transpose(0, 3, 1, 2))).numpy()
    preprocess = {
        "clean": inception.preprocess_clean,
        "legacy_pytorch": inception.preprocess_pytorch,
    }[mode]
    assert_features_agree(our_features(variables, images, preprocess)[0], theirs)
    # The other variant is another measure.
    others = our_features(variables, images, inception.preprocess)[0]
    assert np.abs(others - theirs).max() > 1e-3 * np.abs(theirs).max()
