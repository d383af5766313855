"""The evaluation protocol of the literature, with the user's own weights of pretrained networks.

inception: a file that `genjax.pretrained.inception.load` reads. FID (Heusel et al. 2017), KID
    (Bińkowski et al. 2018), Inception score (Salimans et al. 2016), improved precision and recall
    (Kynkäänniemi et al. 2019; in Inception's features, as Dhariwal & Nichol 2021, not in VGG16's).
clean_inception, pytorch_inception: the same file, with the preprocessing of clean-fid (Parmar et
    al. 2022) and of pytorch-fid.
dinov2: a folder with a `Dinov2Model` of transformers. FD-DINOv2, the kernel distance, precision
    and recall (Stein et al. 2023, whose program takes 5 neighbours; here they are 3).
clip: a folder with a `CLIPModel` of transformers and its tokenizer. CLIP score (Hessel et al.
    2021), of models of prompts.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from experiments.evaluation.context import Context, Model
from experiments.evaluation.context import in_batches as in_small_batches
from experiments.evaluation.features.networks import (
    LOADERS,
    FeatureNetwork,
    features_of,
    in_batches,
    load_network,
)
from experiments.evaluation.features.statistics import Statistics, reference_statistics
from experiments.evaluation.images import draw, image_reference
from experiments.evaluation.protocol import FeatureProtocol
from experiments.evaluation.uncertainty import check_resamples, uncertainty
from experiments.inputs.datasets import Data
from genjax import metrics
from genjax.data import load_dataset, to_float
from genjax.models.encoders.clip import CLIP, resize_and_crop
from genjax.pretrained.variables import parameters_digest

PROMPTS = 500  # encoded and sampled at once
NEIGHBOURS, SPLITS = 3, 10
DISTANCES = {  # Fréchet, kernel
    "inception": ("fid", "kid"),
    "clean_inception": ("clean_fid", "clean_kid"),
    "pytorch_inception": ("pytorch_fid", "pytorch_kid"),
    "dinov2": ("fd_dinov2", "kd_dinov2"),
}


@dataclass(frozen=True)
class PretrainedFeatures:
    """Measure FID, FD-DINOv2, CLIP score and related scores of samples.

    `…_protocol` says in words how they were measured.

    If there are four times as many samples as features, FID and FD-DINOv2 are also extrapolated to
    infinitely many samples, as `fid_extrapolated` (FD∞, Chong & Forsyth 2020). With 2,048 features
    this takes five minutes of a CPU core. The bias of the reference stays.

    Attributes:
        inception, clean_inception, pytorch_inception, dinov2, clip: weights; None leaves a network
            out. The three of Inception are of the same file, and differ in preprocessing.
        reference: `split` of the reference images, by default the training split. By network, also
            a file of statistics, which is written if it is absent, or of published statistics.
        resamples: of the interval `fid_interval`, 20 seconds each with 2,048 features; 0 leaves the
            intervals out.
    """

    context: Context
    inception: str | None = None
    clean_inception: str | None = None
    pytorch_inception: str | None = None
    dinov2: str | None = None
    clip: str | None = None
    reference: Mapping[str, str] = field(default_factory=dict, compare=False)
    resamples: int = 0
    needs: ClassVar[tuple[str, ...]] = ()
    takes_held_out: ClassVar[bool] = False  # as of `check_resamples`

    def __post_init__(self):
        """Read the weights once, so that a fault shows before any training.

        Raises:
            FileNotFoundError, ValueError: as of `load_network`; or CLIP is given without prompts,
                a network without pictures, `resamples` with too few samples, or a reference of
                another name.
        """
        if unknown := set(self.reference) - {"split", *DISTANCES}:
            raise ValueError(
                f"a measure's reference has {', '.join(sorted(unknown))}; expected split, "
                f"{', '.join(DISTANCES)}"
            )
        feature, shape = self.context.data.feature, self.context.data.image_shape
        if self.weights and (feature != "image" or len(shape) != 3):
            raise ValueError(
                f"config.evaluation.measures has {', '.join(self.weights)}, which measure "
                f"pictures; config.data.feature is {feature!r} and config.data.image_shape "
                f"{shape}: leave them out"
            )
        if self.clip and not hasattr(self.context.condition, "prompts"):
            raise ValueError(
                "config.evaluation.measures has clip, which scores pictures by their prompts, and "
                "this model takes none: leave it out"
            )
        for name, path in self.weights.items():
            network = LOADERS[name](path)
            if self.resamples and name != "clip":
                images = jax.ShapeDtypeStruct((1, *shape), np.uint8)
                features, _ = jax.eval_shape(network.apply, network.variables, images)
                check_resamples(
                    type(self).__name__,
                    self.resamples,
                    self.context,
                    features.shape[1],
                    takes_held_out=self.takes_held_out,
                )

    @property
    def weights(self) -> dict[str, str]:
        """The weights that are given, by network."""
        return {name: path for name in LOADERS if (path := getattr(self, name))}

    def features(self) -> dict[str, FeatureProtocol]:
        """Return how samples become features of each network, for the protocol."""
        protocols = {}
        for name, path in self.weights.items():
            network = load_network(name, path)
            if name == "clip":
                resizing = "the shorter side by antialiased bicubic interpolation, then cropped"
                described = "CLIP", parameters_digest(network[1])
                protocols[name] = FeatureProtocol(*described, resizing=resizing, antialiasing=True)
            else:
                protocols[name] = FeatureProtocol(
                    network.description,
                    parameters_digest(network.variables),
                    resizing=network.resizing,
                    antialiasing=network.antialiasing,
                )
        return protocols

    def __call__(self, model: Model) -> dict[str, Any]:
        if hasattr(self.context.condition, "prompts"):
            return self._of_prompts(model)
        context = self.context
        training = lambda: image_reference(context.data, context.num_samples).train_labels
        images = model.sample(context.draw_labels(training))
        return self.measure(images) | {"num_samples": len(images), "labels": context.labels}

    def _of_prompts(self, model: Model) -> dict[str, Any]:
        """Measure samples for one held-out prompt after the other, then from the first again.

        Each `PROMPTS` samples have their own seed: `config.sampling.seed` and the following ones.
        """
        count, dataset = self.context.num_samples, self.context.data.held_out()
        rows = np.random.default_rng(0).permutation(len(dataset.source))
        prompts = [dataset.captions[i][0] for i in rows]
        given, images = [prompts[i % len(prompts)] for i in range(count)], []
        size = min(PROMPTS, count)
        for number, start in enumerate(range(0, count, size)):
            some = [given[i % count] for i in range(start, start + size)]  # one shape, one program
            images.append(model.sample(np.arange(size), some, seed=model.sampling.seed + number))
        report = self.measure(np.concatenate(images)[:count], given)
        used = f"{min(count, len(prompts))} held-out prompts for {count} samples"
        return report | {"features_prompts": used, "num_samples": count}

    def measure(
        self,
        images: UInt8[np.ndarray, "samples height width channels"],
        prompts: Sequence[str] | None = None,
        split: str | None = None,
    ) -> dict[str, Any]:
        """Return the scores of images by the networks.

        Args:
            prompts: of each image, for CLIP's score.
            split: of the reference images, if `reference` names none; the training split if None.

        Raises:
            ValueError: as of `reference_statistics`; or images and reference images have different
                shapes.
        """
        report = {}
        for name, path in self.weights.items():
            if name == "clip":
                report |= clip_score(path, images, prompts)
            else:
                data, file = self.context.data, self.reference.get(name)
                chosen = self.reference.get("split") or split or data.train_split
                statistics = _reference(name, path, file, data, chosen, images.shape[1:])
                network = load_network(name, path)
                report |= measures(name, network, images, statistics, self.resamples)
        return report


@dataclass(frozen=True)
class ReconstructionFeatures(PretrainedFeatures):
    """Measure an autoencoder's reconstructions of held-out images in the same way, such as rFID.

    By default, the reference images include the originals, as in the literature. So the kernel
    distance is biased downward, and distances may lie below those of other real images.
    """

    needs: ClassVar[tuple[str, ...]] = ("reconstruct",)
    takes_held_out: ClassVar[bool] = True

    def __call__(self, model: Model) -> dict[str, Any]:
        data = self.context.data
        source = data.held_out().source
        rows = draw(len(source), self.context.num_samples)
        decoded = in_small_batches(model.functions["reconstruct"], source[rows][data.feature])
        report = self.measure(decoded, split=data.held_out_split)
        return report | {"num_samples": len(rows)}


@functools.cache
def _reference(
    name: str,
    weights: str,
    path: str | None,
    data: Data,
    split: str,
    shape: tuple[int, ...],
) -> Statistics:
    dataset = load_dataset(data.name, split, data.directory, **dict(data.options))
    # Samples are square, so reference images of other sizes are cropped to compare with them.
    size = data.image_shape[0] if data.resize else shape[0] if data.buckets else None
    known = (size, size, *dataset.image_shape[2:]) if size else dataset.image_shape
    if known != shape:
        raise ValueError(
            f"samples have shape {shape}, reference images of {dataset.name} ({dataset.split}) "
            f"{known}: their distance would measure the sizes; name another split in the "
            "measure's reference.split"
        )
    return reference_statistics(load_network(name, weights), dataset, size, path)


def measures(
    name: str,
    network: FeatureNetwork,
    images: UInt8[np.ndarray, "samples height width channels"],
    reference: Statistics,
    resamples: int,
) -> dict[str, Any]:
    """Return the measures of one network that its reference allows, and their protocol."""
    features, logits = features_of(network, images)
    frechet, kernel = DISTANCES[name]
    known = reference.mean, reference.covariance
    distance = lambda features: metrics.frechet_distance_from_moments(
        *metrics.feature_moments([features]), *known
    )
    line = lambda features: metrics.extrapolated_frechet_distance_from_moments(features, *known)
    report: dict[str, Any] = {
        frechet: distance(features),
        **uncertainty(frechet, line, distance, features, resamples=resamples),
    }
    source = reference.protocol
    words = [
        f"{network.description}, weights' SHA-256 {network.weights}",
        f"{len(images)} samples of {'×'.join(map(str, images.shape[1:]))}, rounded to bytes, "
        f"resized {network.resizing}",
        f"reference: statistics in {reference.path}, "
        + (
            f"of all {source['number of images']} images of {source['dataset']} "
            f"({source['split']}), prepared: {source['preparation']}, and resized like samples"
            if source
            else "which do not say of which images or how"
        ),
        f"{frechet}: Fréchet distance of means and covariances",
    ]
    if reference.features is not None:
        count, width = reference.features.shape
        precision, recall = metrics.precision_recall(features, reference.features, k=NEIGHBOURS)
        report |= {
            kernel: metrics.kernel_distance(features, reference.features),
            f"{name}_precision": precision,
            f"{name}_recall": recall,
        }
        words += [
            f"{kernel}: kernel (x·y/{width} + 1)³, unbiased, over all pairs of samples and {count} "
            "reference images, no subsets",
            f"precision and recall: {NEIGHBOURS} neighbours, of all samples and the same "
            "reference images",
        ]
    if logits is not None:
        report["inception_score"], report["inception_score_deviation"] = metrics.inception_score(
            logits, SPLITS
        )
        words.append(
            f"Inception score: logits without bias, {SPLITS} parts in the order of the samples, "
            "their mean and deviation"
        )
    return report | {f"{name}_protocol": "; ".join(words)}


@functools.cache
def _similarity(module: CLIP) -> Callable:
    def similarity(variables, images, tokens):
        colours = jnp.broadcast_to(to_float(images), (*images.shape[:3], 3))
        pictures = resize_and_crop(colours, module.vision.image_size)
        with jax.default_matmul_precision("highest"):
            return module.apply(variables, pictures, tokens, method="similarity")

    return similarity


def clip_score(
    path: str, images: UInt8[np.ndarray, "samples height width channels"], prompts: Sequence[str]
) -> dict[str, Any]:
    """Return the CLIP score of pictures with their prompts, and its protocol.

    The score is the mean of max(100·cosine, 0), by the CLIP in a folder. Hessel et al. take 2.5 in
    place of 100, and put "A photo depicts" before each prompt.
    """
    module, variables, tokenizer, weights = load_network("clip", path)
    tokens, _ = tokenizer.encode(prompts, module.text.max_length)
    read = lambda part: (images[part], tokens[part])
    cosines = np.concatenate(list(in_batches(_similarity(module), variables, read, len(images))))
    vision = module.vision
    words = [
        f"CLIP of width {vision.width}, depth {vision.depth} and patches of {vision.patch_size}, "
        f"weights' SHA-256 {weights}",
        f"{len(images)} samples, rounded to bytes, the shorter side to {vision.image_size} by "
        "antialiased bicubic interpolation, not rounded after, and the middle of the longer",
        "mean over samples of max(100·cosine, 0) with their prompts as they are, nothing before "
        "them",
    ]
    return {
        "clip_score": float(np.maximum(100 * cosines.astype(np.float64), 0).mean()),
        "clip_protocol": "; ".join(words),
    }
