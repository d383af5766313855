"""The table of the ways back, on a linear generator, whose inverse is known."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evaluation import inversions
from experiments.evaluation.inversions import Inversions, _timed, nearest_sample
from experiments.tasks.latent_generators import Inverses, LatentGenerator
from genjax.data import to_uint8

COUNT = 12
BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 4)))[0]  # orthonormal columns
SCALE = np.array([0.2, 0.3, 0.4, 0.5])
RESIDUAL = 0.1  # of the held-out images, in each of the pixels' directions that G cannot make


class Linear(nn.Module):
    """x = B·diag(scale)·z, as images of 4×4 pixels."""

    latent_size: int = 4

    @nn.compact
    def __call__(self, z, labels=None, *, train=False):
        return (z @ self.param("matrix", nn.initializers.zeros, (4, 16))).reshape(-1, 4, 4, 1)


def pseudo_inverse(variables, images, labels):
    return images.reshape(-1, 16) @ jnp.linalg.pinv(variables["generator"]["params"]["matrix"])


class Source:
    """Held-out images: what the generator makes, and a part that it cannot make."""

    def __init__(self):
        random = np.random.default_rng(1)
        outside = np.linalg.svd(BASIS)[0][:, 4:]
        x = random.standard_normal((COUNT, 4)) * SCALE @ BASIS.T
        x += RESIDUAL * random.choice([-1, 1], (COUNT, 12)) @ outside.T
        self.images = x.reshape(-1, 4, 4, 1).astype(np.float32)

    def __len__(self):
        return COUNT

    def __getitem__(self, rows):
        return {"image": self.images[rows], "label": np.zeros(len(rows), np.int32)}


@pytest.fixture(scope="module")
def timed():
    """The arguments of the functions whose time is taken, filled while the report is made."""
    return []


@pytest.fixture(scope="module")
def report(timed):
    space = SimpleNamespace(encode=lambda x: x, to_data=to_uint8)
    data = SimpleNamespace(held_out=lambda: SimpleNamespace(source=Source()), feature="image")
    context = SimpleNamespace(space=space, data=data, num_samples=100)
    matrix = (BASIS * SCALE).T.astype(np.float32)
    inverses = Inverses(
        LatentGenerator(Linear()),
        False,
        {
            "constant": lambda variables, images, labels: jnp.zeros((len(images), 4)),
            "exact": pseudo_inverse,
        },
        lambda: {"generator": {"params": {"matrix": matrix}}},
    )
    model = SimpleNamespace(functions={"inverses": inverses}, how={"weights": "ema"})

    def spy(compiled, *args):
        timed.append(args)
        return _timed(compiled, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inversions, "_timed", spy)
        return Inversions(context, count=50, num_steps=300, refinement_steps=300)(model)


def test_every_way_has_its_row(report):
    ways = ["gradient descent", "constant", "exact", "constant, then descent"]
    assert list(report["inversion"]) == ways
    assert all(row["milliseconds"] > 0 for row in report["inversion"].values())
    assert report["inverted_images"] == COUNT and report["inversion_latents"] == "z"
    assert report["weights"] == "ema" and report["inversions"].info["rows"][:2] == [
        "held out",
        "gradient descent",
    ]


def test_no_time_is_taken_of_transfers_to_the_device(report, timed):
    assert len(timed) == len(report["inversion"])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(timed))


def test_errors_are_those_of_linear_algebra(report):
    """The part outside the generator's images remains. A constant answer has the error 1."""
    least = 12 * RESIDUAL**2 / 16
    rows = report["inversion"]
    np.testing.assert_allclose(rows["exact"]["reconstruction_error"], least, rtol=1e-4)
    assert rows["exact"]["latent_error"] < 1e-10
    for way in ("gradient descent", "constant, then descent"):
        np.testing.assert_allclose(rows[way]["reconstruction_error"], least, rtol=1e-3)
        assert rows[way]["latent_error"] < 1e-4
    everything = np.square(Source().images).mean()
    np.testing.assert_allclose(rows["constant"]["reconstruction_error"], everything, rtol=1e-5)
    # The latents of 12 images have a mean of their own, so it is a little above 1.
    assert 1 <= rows["constant"]["latent_error"] < 1.5
    own = rows["constant"]  # the task's own encoder is the first
    assert [report["reconstruction_error"], report["latent_error"]] == list(own.values())[:2]


def test_the_start_of_gradient_descent_is_the_nearest_sample():
    """Among 256 samples of 4 latents the nearest is much nearer than the mean one."""
    matrix = jnp.eye(4, 16)
    variables, truth = (
        {"params": {"matrix": matrix}},
        jnp.array([[0.5, -1, 0.3, 1], [0, 0, 1, 1.0]]),
    )
    generator, key = LatentGenerator(Linear()), jax.random.key(3)
    images = generator.images(variables, truth, None)
    found = nearest_sample(generator, variables, key, images, None)
    for i, each in enumerate(jax.random.split(key, 2)):
        samples = generator.draw(variables, each, None, 256)
        distances = jnp.square(samples - truth[i]).sum(1)
        np.testing.assert_array_equal(found[i], samples[jnp.argmin(distances)])
