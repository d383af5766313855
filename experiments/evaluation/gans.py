"""What a GAN's losses do not show, and points in the plane instead of images."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from experiments.evaluation.images import Reference, beside_training
from experiments.launch.sampling import mesh_of, sample_images
from genjax.adversarial import instruments
from genjax.data import load_dataset
from genjax.data.sets import gaussians
from genjax.devices.mesh import replicated
from genjax.training.pictures import histograms


class PlaneReference:
    """What samples of `genjax.data.sets.gaussians` are measured against: its points, and the centres of its modes.

    A sample is of high quality within three deviations of a centre, and then of that mode; a mode is covered if
    it has at least a tenth of an equal share.
    """

    def __init__(self, config: Any):
        self.centres, self.deviation = gaussians.MODES[config.data.name]
        self.num_modes = len(self.centres)
        train, held_out = (
            load_dataset(config.data.name, split).source[:]
            for split in (config.data.train_split, config.data.held_out_split)
        )
        count = config.evaluation.num_samples
        self.real, self.unseen = train["image"], held_out["image"][:count]
        self.judged = tuple((part["image"][:count], part["label"][:count]) for part in (train, held_out))
        self.labels = np.zeros(count, np.int32)

    def modes(self, points: np.ndarray) -> np.ndarray:
        """The mode of each point; −1 for those of none."""
        distances = np.linalg.norm(points[:, None] - self.centres, axis=2)
        return np.where(distances.min(1) < 3 * self.deviation, distances.argmin(1), -1)


def evaluate_plane(
    task: Any, state: Any, config: Any, reference: PlaneReference
) -> tuple[dict[str, Any], np.ndarray]:
    """The metrics of `config.evaluation.num_samples` points, and the points. Features are coordinates."""
    points = sample_images(task, state, reference.labels, config.sampling)
    report = {
        "high_quality": float(np.mean(reference.modes(points) >= 0)),
        "high_quality_train": float(np.mean(reference.modes(reference.real) >= 0)),
        **beside_training(points, reference.real, reference.unseen),
        "num_samples": len(points),
        "samples_per_distance": len(reference.unseen),
        **task.describe_sampling(config.sampling),
        "weights": config.sampling.weights,
        "seed": config.sampling.seed,
    }
    return report, points


@functools.cache
def _judge(discriminator: nn.Module, mesh: Mesh):
    return jax.jit(discriminator.apply, out_shardings=replicated(mesh))


def inspect(
    task: Any,
    state: Any,
    config: Any,
    reference: Reference | PlaneReference,
    samples: np.ndarray,
    features: np.ndarray,
) -> dict[str, float | Image.Image]:
    """By a classifier of the modes and by the discriminator as it is after training; a picture of its logits.

    Args:
        samples: of `reference.labels`, as floats.
        features: of the samples.
    """
    count = min(len(samples), len(reference.unseen))
    predicted, expected = reference.modes(features), reference.modes(reference.unseen)
    judge, mesh = _judge(task.discriminator, mesh_of(state)), mesh_of(state)

    def logits(examples, labels):
        """In batches as in training, since a discriminator may look at all of one; what is left over is not judged."""
        size = min(config.batch_size // config.updates.discriminator, len(examples))
        parts = [slice(i, i + size) for i in range(0, len(examples) - size + 1, size)]
        with jax.set_mesh(mesh):
            judged = [
                judge(
                    state.discriminator.variables, examples[part], labels[part] if task.conditional else None
                )
                for part in parts
            ]
        return np.concatenate(judged)

    generated = samples[:count], reference.labels[:count]
    train, held_out, fake = (logits(*examples) for examples in (*reference.judged, generated))
    edge = float(instruments.boundary(task.objective, jnp.asarray(train), jnp.asarray(fake)))
    shares = {"training": train, "held out": held_out, "generated": fake}
    return {
        "modes_covered": float(instruments.modes_covered(predicted, reference.num_modes)),
        "num_modes": float(reference.num_modes),
        "divergence_of_modes": instruments.divergence_of_modes(predicted, expected, reference.num_modes),
        "duplicate_rate": instruments.duplicate_rate(features[:count], reference.unseen[:count]),
        "accuracy/train": float(np.mean(train > edge)),
        "accuracy/held_out": float(np.mean(held_out > edge)),
        "accuracy/samples": float(np.mean(fake < edge)),
        "logits": histograms(
            {name: instruments.histogram(each) for name, each in shares.items()}, instruments.HISTOGRAM_EDGES
        ),
    }
