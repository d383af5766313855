"""Families and networks of a user's own: written outside the project, and used by every program.

A toy family has a network, a data set, a task, an evaluator and a config in a folder of its own. No
file of the project is touched for it.
"""

import itertools
import json
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genjax.pipelines import Run
from tests.experiments.launching import ROOT, run

FAMILY = '''
"""A family that learns the mean image of each class, and samples it with a little noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.configuration import kinds
from experiments.tasks import optimization
from experiments.tasks.optimization import Optimization
from genjax import diffusion
from genjax.data import Dataset, InMemory


class Means(nn.Module):
    shape: tuple
    num_classes: int

    @nn.compact
    def __call__(self, labels):
        table = self.param("table", nn.initializers.zeros, (self.num_classes, *self.shape))
        return table[labels]


def load_stripes(split, data_dir):
    """Rows that are bright at the place of their class."""
    labels = np.arange({"train": 64, "test": 16}[split], dtype=np.int32) % 4
    noise = np.random.default_rng(len(labels)).integers(0, 20, (len(labels), 4, 4, 1))
    images = noise.astype(np.uint8)
    images[np.arange(len(labels)), labels] += 235
    arrays = {"image": images, "label": labels}
    return Dataset("stripes", split, InMemory(arrays), num_classes=4)


@dataclass(frozen=True)
class MeanTask:
    network: nn.Module
    space: Any
    condition: Any
    optimization: Optimization
    noise: float

    animation: ClassVar[str] = "noisier.gif"

    @classmethod
    def from_config(cls, config):
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        condition = kinds.CONDITION.bind(config.condition, "condition")
        network = Means(space.shape, condition.num_classes)
        return cls(network, space, condition, Optimization.from_config(config), config.noise)

    @property
    def averages(self):
        return self.optimization.averages

    def init(self, key):
        return self.optimization.first_state(self.network.init(key, jnp.zeros(1, int))["params"])

    def update(self, state, batch, key):
        def loss(params, batch, key):
            x = self.space.encode(batch[self.space.feature])
            means = self.network.apply({"params": params}, self.condition.of_batch(batch))
            return jnp.square(x - means).mean(), ()

        state, _, metrics = self.optimization.step(state, loss, batch, key)
        return state, metrics

    def generate(self, state, key, labels, indices, *, weights="params", trajectory=False):
        means = self.network.apply({"params": state.weights(weights)}, labels)
        keys = diffusion.sample_keys(key, indices)
        noise = jax.vmap(lambda key: jax.random.normal(key, self.space.shape))(keys)
        samples = means + self.noise * noise
        return jnp.stack([means, samples]) if trajectory else samples

    def variables(self, state, weights):
        return {"params": state.weights(weights)}

    def networks(self, state, weights):
        return {"network": self.variables(state, weights)}

    def start_from(self, state, networks):
        return self.optimization.first_state(networks["network"]["params"])

    is_sampled_from = staticmethod(optimization.is_sampled_from)

    def sampling_inputs(self, sampling):
        return ()

    def abstract_sampling_inputs(self, sampling, batch, frozen):
        return ()

    def num_evaluations(self, sampling):
        return 1

    def describe_sampling(self, sampling):
        return {"noise": self.noise}

    def functions(self, state, sampling):
        def mean(label):
            params = self.variables(state, sampling.weights)["params"]
            return np.asarray(params["table"][label])

        return {"mean": mean}

    def alarms(self, metrics: Mapping[str, float]):
        return ["It is dark."] if metrics.get("brightest", 1.0) < 0 else []


@dataclass(frozen=True)
class Brightness:
    """How bright the row of its class is in a class's mean and in its samples, in [-1, 1]."""

    context: Any
    row: int = 0
    needs: ClassVar[tuple[str, ...]] = ("mean",)

    def __call__(self, model):
        samples = model.sample(np.full(self.context.num_samples, self.row))
        return {
            "brightest": float(model.functions["mean"](self.row)[self.row].mean()),
            "sampled": float(samples[:, self.row].mean() / 127.5 - 1),
            "held_out": len(self.context.data.held_out().source),
        }
'''

CONFIG = """
from experiments.configuration import base


def get_config():
    config = base.experiment(
        "stripes",
        "toy_family.MeanTask",
        dict(name="toy_family.load_stripes", image_shape=(4, 4, 1)),
        num_steps=40,
        batch_size=16,
        model=dict(name="toy_family.Means"),
        condition=dict(name="Classes", num_classes=4),
        optimizer=base.optimizer(learning_rate=0.1),
        averages=dict(ema=dict(name="HalfLife", steps=2.0)),
        checkpoint=dict(every=10, keep=3),
        sampling=base.sampling(every=20, per_class=3),
        evaluation=dict(
            every=0,
            num_samples=32,
            measures=dict(
                samples=dict(name="Samples"),
                brightness=dict(name="toy_family.Brightness", row=1, every=20),
            ),
        ),
        noise=0.1,
    )
    config.log_every = 10
    return config
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The folder of the toy family, which Python can import from."""
    folder = tmp_path_factory.mktemp("family")
    (folder / "toy_family.py").write_text(FAMILY)
    (folder / "stripes.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("toy_family", None)


def project_files() -> dict[Path, int]:
    """When each file of the project changed last."""
    folders = ("genjax", "experiments", "configs", "notebooks")
    files = (
        path
        for name in folders
        for path in Path(ROOT, name).rglob("*")
        if "__pycache__" not in path.parts
    )
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


def succeed(name, *flags):
    result = run(name, *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_family_of_ones_own_goes_through_every_program(family, tmp_path):
    before, config = project_files(), f"--config={family}/stripes.py"
    runs = [tmp_path / "first", tmp_path / "second"]
    succeed(
        "train", config, f"--workdir={runs[0]}", "--config.evaluation.measures.brightness.every=40"
    )
    # The second one is interrupted by a mistake of the user's at its end, and goes on by the same
    # command.
    succeed("train", config, f"--workdir={runs[1]}", "--config.seed=1")
    saved = sorted((runs[1] / "checkpoints").iterdir())[-1]
    for path in sorted(saved.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    saved.rmdir()
    (runs[1] / "report.json").unlink()
    logged = (runs[1] / "metrics.jsonl").read_text().splitlines()
    succeed("train", config, f"--workdir={runs[1]}", "--config.seed=1")
    resumed = (runs[1] / "metrics.jsonl").read_text().splitlines()
    until = [row for row in logged if json.loads(row)["step"] <= 30]
    assert resumed[: len(until)] == until and json.loads(resumed[-1])["step"] == 40
    reports = [json.loads((each / "report.json").read_text()) for each in runs]
    for report in reports:
        # Adam's means have nearly settled at the row's 0.92 after 40 steps.
        assert (
            abs(report["brightest"] - 0.92) < 0.2
            and report["held_out"] == 16
            and report["noise"] == 0.1
        )
        # Samples are means with noise of 0.1, cut at 1.
        assert 0.7 < report["sampled"] < 1
        assert report["class_accuracy"] == 1.0 and report["alarms"] == []

    succeed("sample", f"--workdir={runs[0]}", "--classes=2", "--count=5", f"--out={tmp_path}/s.npz")
    with np.load(tmp_path / "s.npz") as samples:
        assert samples["images"].shape == (5, 4, 4, 1)
        assert np.argmax(samples["images"].mean((0, 2, 3))) == 2
    succeed("evaluate", f"--workdir={runs[0]}", f"--out={tmp_path}/again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["brightest"] == pytest.approx(reports[0]["brightest"], abs=1e-6)
    assert "stripes" in Path(succeed("report", f"--workdir={runs[0]}").strip()).read_text()
    succeed("compare", *runs, f"--out={tmp_path}/compare.html")
    assert "brightest" in (tmp_path / "compare.html").read_text()
    plan = succeed("plan", config, "--mesh=data:2", "--device=h100", f"--out={tmp_path}/plan.json")
    assert (
        "stripes" in plan and json.loads((tmp_path / "plan.json").read_text())["parameters"] == 64
    )
    opened = Run(runs[0])  # by what the record says built it
    np.testing.assert_array_equal(opened.sample([2] * 5), samples_of(tmp_path / "s.npz"))
    assert project_files() == before


def samples_of(path):
    with np.load(path) as stored:
        return stored["images"]


UNET = '''
"""A network of a user's own: two convolutions down, two up, and the time added between."""

import flax.linen as nn
import jax.numpy as jnp


class SmallUNet(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x_t, t, condition):
        time = nn.Dense(self.width)(jnp.stack([t, t**2], -1)) + nn.Embed(8, self.width)(condition)
        fine = nn.Conv(self.width, (3, 3))(x_t)
        coarse = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(fine) + time[:, None, None])
        back = nn.ConvTranspose(self.width, (3, 3), strides=(2, 2))(coarse)
        return nn.Conv(x_t.shape[-1], (3, 3))(nn.relu(back + fine))


class SmallGenerator(nn.Module):
    latent_size: int = 4
    num_classes: int = 0

    @nn.compact
    def __call__(self, z, labels, train=False):
        x = nn.Dense(8 * 8 * 4)(z).reshape(-1, 8, 8, 4)
        return nn.tanh(nn.ConvTranspose(3, (3, 3), strides=(2, 2))(nn.relu(x)))


class SmallDiscriminator(nn.Module):
    num_classes: int = 0

    @nn.compact
    def __call__(self, images, labels, train=False):
        features = nn.relu(nn.Conv(4, (3, 3), strides=2)(images))
        return nn.Dense(1)(features.reshape(len(images), -1))[:, 0]


class SmallAutoencoder(nn.Module):
    factor: int = 2

    def setup(self):
        self.down = nn.Conv(4, (3, 3), strides=2)
        self.conv_out = nn.ConvTranspose(3, (3, 3), strides=(2, 2))

    def __call__(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.conv_out(z)


class Tall(nn.Module):
    """Breaks the contract: it returns another shape than it takes."""

    @nn.compact
    def __call__(self, x_t, t, condition):
        return jnp.concatenate([x_t, x_t], 1)


class Deaf(nn.Module):
    """Breaks the contract: it takes no condition."""

    @nn.compact
    def __call__(self, x_t, t):
        return x_t
'''

SHORT = [
    "--config.num_steps=4",
    "--config.batch_size=8",
    "--config.log_every=2",
    "--config.checkpoint.every=4",
    "--config.sampling.every=4",
    "--config.sampling.per_class=2",
    "--config.evaluation.num_samples=8",
    "--config.data.name=folder",
    "--config.data.image_shape=(16, 16, 3)",
    "--config.data.resize=True",
]


@pytest.fixture(scope="module")
def own_networks(tmp_path_factory):
    """Return a module of own networks, and a folder of pictures of mixed sizes in two classes."""
    folder = tmp_path_factory.mktemp("networks")
    (folder / "own_networks.py").write_text(textwrap.dedent(UNET))
    generator = np.random.default_rng(0)
    for split, label in itertools.product(("train", "test"), ("dark", "light")):
        path = folder / "pictures" / split / label
        path.mkdir(parents=True)
        for i in range(8):
            size = generator.integers(16, 40, 2)
            pixels = generator.integers(0, 128, (*size, 3)) + 127 * (label == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(path / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield f"--config.data.directory={folder}/pictures"
    sys.modules.pop("own_networks", None)


DIFFUSION = ["digits_flow", "--config.condition.num_classes=2", "--config.sampling.num_steps=2"]
GAN = ["digits_gan.py:dcgan", "--config.condition.num_classes=2"]
AUTOENCODER = [
    "emoji_autoencoder.py:kl",
    "--config.optimizer.autoencoder.warmup=0",
    "--config.weights={'perceptual': 0.0}",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "networks"),
    [
        (DIFFUSION, dict(model="SmallUNet")),
        (GAN, {"model.generator": "SmallGenerator", "model.discriminator": "SmallDiscriminator"}),
        (AUTOENCODER, dict(model="SmallAutoencoder")),
    ],
    ids=["diffusion", "gan", "autoencoder"],
)
def test_a_network_of_ones_own_trains_on_a_folder_of_mixed_sizes(
    config, networks, own_networks, tmp_path
):
    name, *flags = config
    names = [f"--config.{field}.name=own_networks.{network}" for field, network in networks.items()]
    path = name if ".py" in name else f"{name}.py"
    succeed(
        "train",
        f"--config={ROOT}/configs/{path}",
        *flags,
        *SHORT,
        *names,
        own_networks,
        f"--workdir={tmp_path}",
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"] == 4 and report["num_samples"] == 8
    assert type(Run(tmp_path).network).__name__ == list(networks.values())[0]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("Tall", r"names Tall, which returns \[1, 32, 16, 3\] of x_t \[1, 16, 16, 3\]"),
        (
            "Deaf",
            r"names own_networks\.Deaf, which cannot be called so.*DiffusionNetwork is "
            r"`network\(x_t",
        ),
        ("Absent", r"config\.model\.name is 'own_networks\.Absent'"),
    ],
)
def test_a_network_that_breaks_the_contract_is_one_clear_error(
    network, message, own_networks, tmp_path
):
    name = f"--config.model.name=own_networks.{network}"
    config = f"--config={ROOT}/configs/digits_flow.py"
    result = run(
        "train", config, *DIFFUSION[1:], *SHORT, name, own_networks, f"--workdir={tmp_path}"
    )
    assert result.returncode == 1 and result.stderr.startswith("error: ")
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "config.json").exists()
