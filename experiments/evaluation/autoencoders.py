"""How good an autoencoder is: bounds on the likelihood of held-out images, and how its reconstructions differ from them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from PIL import Image

from experiments.evaluation.features.features import evaluate_features
from experiments.evaluation.images import Reference
from experiments.inputs.datasets import load_split
from experiments.launch.sampling import mesh_of
from genjax import autoencoding, metrics
from genjax.autoencoding import instruments
from genjax.data import to_float, to_uint8
from genjax.devices.mesh import replicated
from genjax.metrics.lpips import LPIPS
from genjax.models.encoders.vgg16 import vgg16_features
from genjax.pretrained.lpips import load_lpips
from genjax.training.pictures import image_grid

BATCH, COLUMNS = 50, 10


def beside(originals: np.ndarray, reconstructions: np.ndarray) -> Image.Image:
    """Rows of at most `COLUMNS` originals, in bytes, each above that of their reconstructions."""
    columns = min(COLUMNS, len(originals))
    both = [images[: len(images) // columns * columns] for images in (originals, reconstructions)]
    rows = rearrange(np.stack(both), "k (r c) h w d -> (r k c) h w d", c=columns)
    return image_grid(rows, columns)


def in_batches(function: Any, *arrays: np.ndarray) -> Any:
    """`function(*arrays)`, `BATCH` rows at a time, in NumPy; the last batch is filled up, so there is one shape."""
    results = []
    for start in range(0, len(arrays[0]), BATCH):
        parts = [a[start : start + BATCH] for a in arrays]
        padded = [np.concatenate([a, np.repeat(a[:1], BATCH - len(a), 0)]) for a in parts]
        results.append(jax.tree.map(lambda a: np.asarray(a)[: len(parts[0])], function(*padded)))  # noqa: B023
    return jax.tree.map(lambda *each: np.concatenate(each), *results)


@functools.cache
def _bounds(task: Any, num_samples: int, mesh: Mesh):
    def bounds(params, images, key):
        mean, log_variance = task.encode(params, images)
        log_weights = autoencoding.log_weights(
            key, task.log_likelihood(params, images), mean, log_variance, num_samples
        )
        bound = autoencoding.importance_weighted_bound(log_weights)
        return log_weights.mean(0), bound, mean, task.likelihood.mean(task.decode(params, mean))

    return jax.jit(bounds, out_shardings=replicated(mesh))


def evaluate_bounds(task: Any, state: Any, config: Any, reference: Reference) -> dict[str, Any]:
    """Bounds on log p(x) of the held-out images, and what the latents do.

    In nats per image; of discretized likelihoods, also in bits per dimension.
    """
    params, images = state.weights(config.sampling.weights), reference.judged[1][0]
    num_samples, mesh = config.evaluation.num_importance_samples, mesh_of(state)
    bounds, keys = _bounds(task, num_samples, mesh), iter(jax.random.split(jax.random.key(0), len(images)))
    with jax.set_mesh(mesh):
        elbos, tighter, means, decoded = in_batches(lambda x: bounds(params, x, next(keys)), images)
    report = {
        "elbo": float(elbos.mean()),
        "elbo_error": float(elbos.std() / np.sqrt(len(images))),
        "importance_weighted_bound": float(tighter.mean()),
        "num_importance_samples": num_samples,
        "active_units": float(metrics.active_units(means)),
        "num_units": float(means.shape[1]),
        "reconstructions": beside(to_uint8(images[:50]), to_uint8(decoded[:50])),
    }
    if config.likelihood.name == "discretized_logistic":
        report["bits_per_dimension"] = float(-tighter.mean() / (images[0].size * np.log(2)))
    return report


@functools.cache
def _vgg16():
    return jax.jit(vgg16_features)


@functools.cache
def _lpips():
    return jax.jit(LPIPS().apply)


class Originals:
    """Held-out images, or the frames of held-out videos, and their features.

    Attributes:
        examples: bytes, of the data's form.
        features: VGG16's, of each image or frame.
        floor: the Fréchet distance of as many training images' features to these.
    """

    def __init__(self, config: Any):
        splits = (config.data.held_out_split, config.data.train_split)
        held_out, train = (load_split(config, split) for split in splits)
        count = min(config.evaluation.num_samples, len(held_out.source))
        rows, feature = np.random.default_rng(0).permutation, config.data.get("feature", "image")
        self.examples = held_out.source[rows(len(held_out.source))[:count]][feature]
        others = train.source[rows(len(train.source))[:count]][feature]
        self.lpips = load_lpips()[1]
        self.features = self.features_of(self.examples)
        self.floor = self.distance(others)

    def distance(self, examples: np.ndarray) -> float:
        """Fréchet distance of VGG16's features of examples, as many as the held-out at most, to those of the held-out."""
        features = self.features_of(examples[: len(self.examples)])
        return float(metrics.frechet_distance(features, self.features))

    def features_of(self, examples: np.ndarray) -> np.ndarray:
        variables = {"params": self.lpips["params"]["vgg16"]}
        return in_batches(lambda x: _vgg16()(variables, to_float(x)), as_frames(examples))


def as_frames(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[-3:])


@functools.cache
def _reconstruct(task: Any, mesh: Mesh):
    def reconstruct(variables, x):
        z = task.encode(variables, to_float(x))
        indices = None
        if hasattr(task.network, "quantize"):
            indices = task.network.apply(variables, z, method="quantize").indices
        return to_uint8(task.decode(variables, z)), z, indices

    return jax.jit(reconstruct, out_shardings=replicated(mesh))


def evaluate_reconstructions(task: Any, state: Any, config: Any, reference: Originals) -> dict[str, Any]:
    """Distances between held-out examples and their reconstructions in bytes, and statistics of the latents.

    Fréchet distances are of VGG16's features (FD-VGG16, which is no FID): of reconstructions, and of as many training
    examples, to the originals. With `config.evaluation.features` also what `evaluate_features` says of reconstructions beside
    all held-out images, such as rFID. `detail_kept` is the energy of frequencies above half of Nyquist's, over the originals'.
    """
    variables, mesh, originals = state.weights(config.sampling.weights), mesh_of(state), reference.examples
    reconstruct = _reconstruct(task, mesh)
    with jax.set_mesh(mesh):
        decoded, latents, indices = in_batches(lambda x: reconstruct(variables, x), originals)
    x, y = as_frames(originals), as_frames(decoded)
    perceptual = in_batches(lambda *pair: _lpips()(reference.lpips, *map(to_float, pair)), x, y)
    detail = [metrics.high_frequency_energy(to_float(images)).mean() for images in (y, x)]
    statistics = metrics.channel_statistics([latents])
    report = {
        "psnr": float(metrics.psnr(y, x).mean()),
        "ssim": float(metrics.ssim(y, x).mean()),
        "lpips": float(perceptual.mean()),
        "fd_vgg16": reference.distance(decoded),
        "fd_vgg16_train": reference.floor,
        "detail_kept": float(detail[0] / detail[1]),
        "latent_mean": [round(float(value), 4) for value in statistics.mean],
        "latent_deviation": [round(float(value), 4) for value in statistics.deviation],
        "num_samples": len(originals),
        "weights": config.sampling.weights,
        "reconstructions": beside(x[:50], y[:50]),
        **task.describe_sampling(config.sampling),
    }
    if indices is not None:
        counts = instruments.codebook_counts(jnp.asarray(indices), task.network.quantizer.num_codes)
        report |= {name: float(value) for name, value in instruments.codebook_metrics(counts).items()}
    return report | evaluate_features(decoded, config, split=config.data.held_out_split)
