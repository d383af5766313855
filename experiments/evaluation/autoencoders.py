"""Measures of autoencoders: bounds on the likelihood of held-out images, and reconstructions."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluation.context import Context, Model, in_batches
from experiments.evaluation.images import image_reference
from experiments.evaluation.protocol import FeatureProtocol
from experiments.evaluation.uncertainty import standard_error
from experiments.inputs.datasets import Data
from genjax import metrics
from genjax.autoencoding import diagnostics
from genjax.data import to_float, to_uint8
from genjax.metrics.lpips import LPIPS
from genjax.models.encoders.vgg16 import vgg16_features
from genjax.pretrained.lpips import load_lpips, require_lpips
from genjax.pretrained.variables import parameters_digest
from genjax.training.pictures import paired_grid


@dataclass(frozen=True)
class Bounds:
    """Measure bounds on log p(x) of held-out images, in nats per image, and active latents.

    Discretized likelihoods are also reported in bits per dimension.

    Attributes:
        num_importance_samples: of the importance-weighted bound.
    """

    context: Context
    num_importance_samples: int = 500
    needs: ClassVar[tuple[str, ...]] = ("bounds", "levels")
    least_held_out: ClassVar[int] = 2  # of a variance of the latents' means

    def __post_init__(self):
        if self.num_importance_samples < 1:
            raise ValueError(
                "config.evaluation.measures has Bounds, whose num_importance_samples is "
                f"{self.num_importance_samples}; it is 1 or more"
            )

    def __call__(self, model: Model) -> dict[str, Any]:
        images = image_reference(self.context.data, self.context.num_samples).examples[1][0]
        keys = iter(jax.random.split(jax.random.key(0), len(images)))
        bounds = model.functions["bounds"]
        elbos, tighter, means, decoded = in_batches(
            lambda x: bounds(x, next(keys), self.num_importance_samples), images
        )
        report = {
            "elbo": float(elbos.mean()),
            "elbo_error": standard_error(elbos),
            "importance_weighted_bound": float(tighter.mean()),
            "num_importance_samples": self.num_importance_samples,
            "likelihood_images": len(images),
            "active_units": float(metrics.active_units(means)),
            "num_units": float(means.shape[1]),
            "reconstructions": paired_grid(
                {"original": to_uint8(images[:50]), "reconstruction": to_uint8(decoded[:50])}
            ),
        }
        if model.functions["levels"]:
            report["bits_per_dimension"] = float(-tighter.mean() / (images[0].size * np.log(2)))
        return report


@functools.cache
def _vgg16():
    return jax.jit(vgg16_features)


@jax.jit
def _lpips(variables, x, y):
    with jax.default_matmul_precision("highest"):  # a distance does not depend on the device
        return LPIPS().apply(variables, x, y)


class Originals:
    """Held-out images, or the frames of held-out videos, and their features.

    They are no more than training examples, since distances compare equal numbers.

    Attributes:
        examples: bytes, of the data's form.
        features: VGG16's, of each image or frame.
        floor: the Fréchet distance of as many training images' features to these.
    """

    def __init__(self, data: Data, count: int):
        held_out, train = data.held_out(), data.train()
        count = min(count, len(held_out.source), len(train.source))
        rows = np.random.default_rng(0).permutation  # one generator: the second draw is another
        self.examples = held_out.source[rows(len(held_out.source))[:count]][data.feature]
        others = train.source[rows(len(train.source))[:count]][data.feature]
        self.lpips = load_lpips()[1]
        self.features = self.features_of(self.examples)
        self.floor = self.distance(others)

    def distance(self, examples: np.ndarray) -> float:
        """Return the Fréchet distance between examples and held-out ones in VGG16's features.

        At most as many examples are taken as there are held-out ones.
        """
        features = self.features_of(examples[: len(self.examples)])
        return float(metrics.frechet_distance(features, self.features))

    def features_of(self, examples: np.ndarray) -> np.ndarray:
        variables = {"params": self.lpips["params"]["vgg16"]}
        return in_batches(lambda x: _vgg16()(variables, to_float(x)), as_frames(examples))


originals_of = functools.lru_cache(maxsize=2)(Originals)  # computed once for each data set


def vgg16_protocol() -> dict[str, FeatureProtocol]:
    """Return how images become features of VGG16, for the protocol."""
    digest = parameters_digest(load_lpips()[1]["params"]["vgg16"])
    return {"vgg16": FeatureProtocol("VGG16, means of its last maps", digest)}


def as_frames(x: np.ndarray) -> np.ndarray:
    """Return images, or the frames of clips one after another: `[images height width channels]`."""
    return x.reshape(-1, *x.shape[-3:])


def latent_moments(latents: np.ndarray) -> dict[str, list[float]]:
    """Return the mean and the deviation of each channel of latents, to six significant digits.

    Networks on latents standardize by these values. So a small deviation is not rounded to 0.
    """
    statistics = metrics.channel_statistics([latents])
    moments = {"latent_mean": statistics.mean, "latent_deviation": statistics.deviation}
    return {name: [float(f"{value:.6g}") for value in each] for name, each in moments.items()}


@dataclass(frozen=True)
class Reconstructions:
    """Measure the distance of reconstructions to held-out examples, and statistics of latents.

    Fréchet distances are of VGG16's features (FD-VGG16, which is not FID). They compare the
    originals with reconstructions, and with as many training examples. `detail_kept` is the
    reconstructions' energy of frequencies above half of Nyquist's, over the originals' energy.
    """

    context: Context
    needs: ClassVar[tuple[str, ...]] = ("autoencode", "num_codes")
    least_held_out: ClassVar[int] = 2  # of a covariance

    def __post_init__(self):
        require_lpips()

    def features(self) -> dict[str, FeatureProtocol]:
        """Return how images become features, for the protocol."""
        return vgg16_protocol()

    def __call__(self, model: Model) -> dict[str, Any]:
        reference = originals_of(self.context.data, self.context.num_samples)
        decoded, latents, indices = in_batches(model.functions["autoencode"], reference.examples)
        x, y = as_frames(reference.examples), as_frames(decoded)
        perceptual = in_batches(lambda *pair: _lpips(reference.lpips, *map(to_float, pair)), x, y)
        detail = [metrics.high_frequency_energy(to_float(images)).mean() for images in (y, x)]
        report = {
            "psnr": float(metrics.psnr(y, x).mean()),
            "ssim": float(metrics.ssim(y, x).mean()),
            "lpips": float(perceptual.mean()),
            "fd_vgg16": reference.distance(decoded),
            "fd_vgg16_train": reference.floor,
            "detail_kept": float(detail[0] / detail[1]),
            **latent_moments(latents),
            "num_samples": len(reference.examples),
            "reconstructions": paired_grid({"original": x[:50], "reconstruction": y[:50]}),
            **model.how,
        }
        if indices is not None:
            counts = diagnostics.codebook_counts(jnp.asarray(indices), model.functions["num_codes"])
            measured = diagnostics.codebook_metrics(counts)
            report |= {name: float(value) for name, value in measured.items()}
        return report


@dataclass(frozen=True)
class VGG16Distance:
    """Measure the Fréchet distance of VGG16's features of samples, and of training images.

    `fd_vgg16_reconstruction` is that of an autoencoder's reconstructions of the held-out images, if
    the network is on latents. It compares pairs, so it may lie below `fd_vgg16_train`.
    """

    context: Context
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 2  # of a covariance

    def __post_init__(self):
        self.context.check_classes("VGG16Distance")
        require_lpips()

    def features(self) -> dict[str, FeatureProtocol]:
        """Return how samples become features, for the protocol."""
        return vgg16_protocol()

    def __call__(self, model: Model) -> dict[str, Any]:
        context = self.context
        reference = originals_of(context.data, context.num_samples)
        training = lambda: image_reference(context.data, context.num_samples).train_labels
        images = model.sample(context.draw_labels(training))
        report = {
            "fd_vgg16": reference.distance(images),
            "fd_vgg16_train": reference.floor,
            "num_samples": len(images),
            "samples_per_distance": len(reference.examples),
            "labels": context.labels,
        }
        if reconstruct := model.functions.get("reconstruct"):
            reconstructions = in_batches(reconstruct, reference.examples)
            report["fd_vgg16_reconstruction"] = reference.distance(reconstructions)
        return report
