"""The evaluation protocol of the literature: samples and reference images, in pretrained networks' features.

Of `config.evaluation.features`, each the user's own weights, and none by default:

    inception: a file that `genjax.pretrained.inception.load` reads. FID (Heusel et al. 2017), KID (Bińkowski
        et al. 2018), Inception score (Salimans et al. 2016), improved precision and recall (Kynkäänniemi et
        al. 2019).
    dinov2: a folder with a `Dinov2Model` of transformers. FD-DINOv2, the kernel distance, precision and
        recall (Stein et al. 2023).
    clip: a folder with a `CLIPModel` of transformers and its tokenizer. CLIP score (Hessel et al. 2021), of
        models of prompts.

What is known of the reference images is computed once and stored (`reference_statistics`).
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Array, Float, UInt8

from experiments.launch.opening import Config
from experiments.launch.sampling import sample_images
from genjax import metrics
from genjax.data import Dataset, center_crop, compose, load_dataset, resize, to_float
from genjax.data.dataset import num_threads
from genjax.data.tokenizers import Tokenizer
from genjax.devices.mesh import batch_sharding, replicated
from genjax.models.encoders.clip import CLIP, resize_and_crop
from genjax.models.encoders.dinov2 import dinov2_features
from genjax.models.encoders.inception import Inception, inception_features
from genjax.pretrained import clip, dinov2, inception
from genjax.pretrained.safetensors_io import NAMES
from genjax.training.log import ProgressBar

BATCH = 64  # images at once on each device
PROMPTS = 500  # encoded and sampled at once
REFERENCE_FEATURES = (
    10_000  # reference images in KID, precision and recall, as many as Dhariwal & Nichol 2021 have
)
NEIGHBOURS, SPLITS = 3, 10
DISTANCES = {"inception": ("fid", "kid"), "dinov2": ("fd_dinov2", "kd_dinov2")}  # Fréchet, kernel


class FeatureNetwork(NamedTuple):
    """A pretrained network as a function of pictures.

    Attributes:
        description, resizing: which it is, and what it does to pictures first, in words.
        weights: SHA-256 of their file.
        apply: from variables and bytes, `[batch height width channels]`, to features, `[batch features]`, and
            logits, `[batch classes]`, or None.
    """

    description: str
    resizing: str
    weights: str
    variables: Any
    apply: Callable[[Any, Array], tuple[Array, Array | None]]


class Statistics(NamedTuple):
    """What is known of reference images.

    Attributes:
        mean, covariance: of the features of all images, in float64.
        features: of a draw of at most `REFERENCE_FEATURES`, `[images features]`; None of published files
            without images.
        protocol: how they were computed, by name; empty of published files, which do not say.
        path: where they are stored.
    """

    mean: np.ndarray
    covariance: np.ndarray
    features: np.ndarray | None
    protocol: dict[str, Any]
    path: Path


def weights_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, or of the safetensors of a folder (where there are several, one after the other)."""
    path = Path(path)
    files = [path]
    if path.is_dir():
        whole = [file for name in NAMES if (file := path / f"{name}.safetensors").exists()]
        files = whole[:1] or sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while part := stream.read(2**24):
                digest.update(part)
    return digest.hexdigest()


def _inception(path: str) -> FeatureNetwork:
    module, variables = inception.load(path)
    if module != Inception():
        raise ValueError(
            f"{path} holds an Inception of {module.num_classes} classes; FID is of the one of "
            f"{inception.FID_CLASSES}, which genjax/pretrained/inception.py tells of"
        )
    return FeatureNetwork(
        "Inception-v3 of FID (TensorFlow's of 2015-12-05)",
        "to 299×299 by TensorFlow 1's bilinear interpolation, without antialiasing",
        weights_digest(path),
        variables,
        lambda variables, images: inception_features(variables, to_float(images)),
    )


def _dinov2(path: str) -> FeatureNetwork:
    module, variables = dinov2.load(path)
    return FeatureNetwork(
        f"DINOv2 of width {module.width}, depth {module.depth} and {module.num_registers} registers, class "
        "token",
        "to 224×224 by antialiased bicubic interpolation, not rounded after",
        weights_digest(path),
        variables,
        lambda variables, images: (dinov2_features(module, variables, to_float(images)), None),
    )


def _clip(path: str) -> tuple[CLIP, Any, Tokenizer, str]:
    module, variables = clip.load(path)
    if not isinstance(module, CLIP):
        raise ValueError(f"{path} holds a {type(module).__name__} alone; a CLIP score needs a CLIPModel")
    return module, variables, Tokenizer(path), weights_digest(path)


LOADERS = {"inception": _inception, "dinov2": _dinov2, "clip": _clip}


@functools.cache
def load_network(name: str, path: str) -> FeatureNetwork | tuple[CLIP, Any, Tokenizer, str]:
    """The network of `config.evaluation.features` of that name with the weights at `path`; of CLIP, which is
    more than a function of pictures, the module, its variables, its tokenizer and the weights' SHA-256.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are another network's.
    """
    return LOADERS[name](path)


def given_features(config: Any) -> dict[str, str]:
    """The weights that `config.evaluation.features` names, by network; runs of old have no such field."""
    features = config.evaluation.get("features") or {}
    return {name: path for name, path in features.items() if path}


def require_features(config: Any) -> None:
    """What a program that will evaluate by features does before it trains: reads the weights, forgets them.

    Raises:
        FileNotFoundError, ValueError: as of `load_network`; or CLIP is asked for where there are no prompts, or any network
            where there are no pictures.
    """
    given = given_features(config)
    kind, shape = config.data.get("feature", "image"), tuple(config.data.image_shape)
    if given and (kind != "image" or len(shape) != 3):
        raise ValueError(
            f"config.evaluation.features ({', '.join(given)}) measure pictures; the data of {config.experiment} are "
            f"{kind if kind != 'image' else 'points'} of shape {shape}: leave them out"
        )
    if "clip" in given and not config.get("text"):
        raise ValueError(
            "config.evaluation.features.clip scores pictures by their prompts, and this model is told none: "
            "leave it out"
        )
    for name, path in given.items():
        LOADERS[name](path)


def set_features(config: Config, given: list[str]) -> None:
    """Adds networks to those that a run is measured by.

    Args:
        given: NAME=PATH each, as `--features` takes them.
    Raises:
        ValueError: a name without weights, or one that is no network to measure by.
    """
    for each in given:
        name, _, path = each.partition("=")
        if not path or name not in LOADERS:
            raise ValueError(f"--features={each} must be NAME=PATH, with a name of {', '.join(LOADERS)}")
        config.evaluation.setdefault("features", Config())[name] = path
    require_features(config)


@functools.cache
def _program(apply: Callable, mesh: Mesh) -> Callable:
    return jax.jit(
        lambda variables, batch: apply(variables, *batch),
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def in_batches(
    apply: Callable, variables: Any, read: Callable[[slice], tuple[np.ndarray, ...]], count: int
) -> Iterator[Any]:
    """What `apply(variables, *arrays)` makes of `count` examples, batch by batch, on this process' devices.

    Args:
        read: from a slice of them to arrays; called for the next batch while the devices are at this one.
    """
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    program, variables = _program(apply, mesh), jax.device_put(variables, replicated(mesh))
    size = min(BATCH * len(devices), count + -count % len(devices))
    fetch = lambda outputs, length: jax.tree.map(lambda a: np.asarray(a)[:length], outputs)
    ahead = None
    with ProgressBar(0, count) as progress:
        for start in range(0, count, size):
            arrays = read(slice(start, min(start + size, count)))
            length = len(arrays[0])
            filled = tuple(np.concatenate([a, np.repeat(a[:1], size - length, 0)]) for a in arrays)
            outputs = program(variables, filled), length
            if ahead:
                yield fetch(*ahead)
                progress.update(start)
            ahead = outputs
        yield fetch(*ahead)
        progress.update(count)


def features_of(
    network: FeatureNetwork, images: UInt8[np.ndarray, "images height width channels"]
) -> tuple[Float[np.ndarray, "images features"], Float[np.ndarray, "images classes"] | None]:
    """Features, and logits if the network has any, of pictures in bytes."""
    batches = in_batches(network.apply, network.variables, lambda part: (images[part],), len(images))
    features, logits = zip(*batches, strict=True)
    return np.concatenate(features), None if logits[0] is None else np.concatenate(logits)


def reference_statistics(
    network: FeatureNetwork, dataset: Dataset, size: int | None = None, path: str | os.PathLike | None = None
) -> Statistics:
    """Those of all images of a data set: read from `path`, where they are stored if it does not exist.

    `path` may also be a file of published statistics: arrays `mu` and `sigma`, and as `arr_0` images of the
    set (Dhariwal & Nichol 2021), whose features are then computed. Such files do not say how they were made.

    Args:
        size: images are resized and cropped to it as Dhariwal & Nichol 2021 do; as they are stored if None.
        path: by default `genjax/reference-HASH.npz` in `$XDG_CACHE_HOME`, else in `~/.cache`, of a hash of
            the protocol.

    Raises:
        ValueError: what is stored is of another protocol, whose differences are listed, or no statistics.
    """
    prepare = compose(resize(size), center_crop(size)) if size else lambda example, generator: example
    unused = np.random.default_rng(0)
    rows = np.random.default_rng(0).permutation(len(dataset.source))
    with ThreadPoolExecutor(num_threads()) as pool:

        def read(part: slice) -> tuple[np.ndarray]:
            image = lambda row: prepare(dataset.source[row], unused)["image"]
            return (np.stack(list(pool.map(image, rows[part].tolist()))),)

        (some,) = read(slice(10))
        protocol = {
            "network": network.description,
            "weights' SHA-256": network.weights,
            "resizing": network.resizing,
            "dataset": dataset.name,
            "split": dataset.split,
            "number of images": len(rows),
            "image shape": list(some.shape[1:]),
            "preparation": f"shorter side to {size}, middle {size}×{size}" if size else "none",
            "SHA-256 of ten images": hashlib.sha256(some.tobytes()).hexdigest(),
        }
        path = Path(path or _cache(protocol))
        if path.exists():
            return _read_statistics(network, path, protocol)
        kept = []

        def batches() -> Iterator[np.ndarray]:
            for features, _ in in_batches(network.apply, network.variables, read, len(rows)):
                if sum(map(len, kept)) < REFERENCE_FEATURES:
                    kept.append(features)
                yield features

        mean, covariance = metrics.feature_moments(batches())
    statistics = Statistics(mean, covariance, np.concatenate(kept)[:REFERENCE_FEATURES], protocol, path)
    if jax.process_index() == 0:
        _write_statistics(statistics)
    return statistics


def _cache(protocol: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "genjax" / f"reference-{digest[:16]}.npz"


def _write_statistics(statistics: Statistics) -> None:
    path = statistics.path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    with open(unfinished, "wb") as file:
        np.savez(
            file,
            mu=statistics.mean,
            sigma=statistics.covariance,
            features=statistics.features,
            protocol=json.dumps(statistics.protocol),
        )
    unfinished.replace(path)


def _read_statistics(network: FeatureNetwork, path: Path, protocol: Mapping[str, Any]) -> Statistics:
    with np.load(path, allow_pickle=False) as stored:
        if not {"mu", "sigma"} <= set(stored):
            raise ValueError(f"{path} holds {', '.join(stored)}; statistics are mu and sigma")
        there, features = {}, None
        if "protocol" in stored:
            there, features = json.loads(str(stored["protocol"])), stored["features"]
            differing = [
                f"  {name}: {there.get(name)!r} there, {value!r} now"
                for name, value in protocol.items()
                if there.get(name) != value
            ]
            if differing:
                raise ValueError(
                    f"{path} holds statistics of another protocol:\n" + "\n".join(differing) + "\n"
                    "Name another file in config.evaluation.reference, or none; one that is absent is made."
                )
        elif "arr_0" in stored:
            features, _ = features_of(network, stored["arr_0"][:REFERENCE_FEATURES])
        return Statistics(stored["mu"], stored["sigma"], features, there, path)


@functools.cache
def _reference(
    name: str,
    weights: str,
    path: str | None,
    data: tuple[str, str, str | None],
    size: int | None,
    shape: tuple[int, ...],
) -> Statistics:
    dataset = load_dataset(*data)
    known = (size, size, *dataset.image_shape[2:]) if size else dataset.image_shape
    if known != shape:
        raise ValueError(
            f"samples have shape {shape}, reference images of {dataset.name} ({dataset.split}) {known}: "
            "their distance would be one of sizes; name another split in config.evaluation.reference.split"
        )
    return reference_statistics(load_network(name, weights), dataset, size, path)


def _reference_of(
    config: Any, name: str, weights: str, shape: tuple[int, ...], split: str | None
) -> Statistics:
    data, size = config.data, None
    if data.name == "latents":  # of images that `experiments.encode` prepared
        data, size = config.encoding, config.encoding.size
    elif data.get("buckets"):  # images of all sizes; samples are square, or there is nothing to compare
        size = shape[0]
    reference = config.evaluation.get("reference") or {}
    split = reference.get("split") or split or data.train_split
    return _reference(name, weights, reference.get(name), (data.name, split, data.directory), size, shape)


def evaluate_features(
    images: UInt8[np.ndarray, "samples height width channels"],
    config: Any,
    prompts: Sequence[str] | None = None,
    split: str | None = None,
) -> dict[str, Any]:
    """What the networks of `config.evaluation.features` say of samples, and, as `…_protocol`, how, in words.

    Args:
        prompts: of CLIP's score, that of each sample.
        split: of the reference images, if `config.evaluation.reference` has none; the training images if None.

    Raises:
        ValueError: as of `reference_statistics`; or samples and reference images have different shapes.
    """
    report = {}
    for name, path in given_features(config).items():
        if name == "clip":
            report |= clip_score(path, images, prompts)
        else:
            reference = _reference_of(config, name, path, images.shape[1:], split)
            report |= measures(name, load_network(name, path), images, reference)
    return report


def measures(
    name: str,
    network: FeatureNetwork,
    images: UInt8[np.ndarray, "samples height width channels"],
    reference: Statistics,
) -> dict[str, Any]:
    """The measures of one network that are known of its reference, and their protocol."""
    features, logits = features_of(network, images)
    frechet, kernel = DISTANCES[name]
    moments = metrics.feature_moments([features])
    distance = metrics.frechet_distance_from_moments(*moments, reference.mean, reference.covariance)
    report: dict[str, Any] = {frechet: distance}
    source = reference.protocol
    words = [
        f"{network.description}, weights' SHA-256 {network.weights}",
        f"{len(images)} samples of {'×'.join(map(str, images.shape[1:]))}, rounded to bytes, resized "
        f"{network.resizing}",
        f"reference: statistics in {reference.path}, "
        + (
            f"of all {source['number of images']} images of {source['dataset']} ({source['split']}), "
            f"prepared: {source['preparation']}, and resized like samples"
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
            f"{kernel}: kernel (x·y/{width} + 1)³, unbiased, over all pairs of samples and {count} reference "
            "images, no subsets",
            f"precision and recall: {NEIGHBOURS} neighbours, of all samples and the same reference images",
        ]
    if logits is not None:
        report["inception_score"], report["inception_score_deviation"] = metrics.inception_score(
            logits, SPLITS
        )
        words.append(
            f"Inception score: logits without bias, {SPLITS} parts in the order of the samples, their mean "
            "and deviation"
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
    """The mean of max(100·cosine, 0) of pictures and their prompts, by the CLIP in a folder; the protocol."""
    module, variables, tokenizer, weights = load_network("clip", path)
    tokens, _ = tokenizer.encode(prompts, module.text.max_length)
    read = lambda part: (images[part], tokens[part])
    cosines = np.concatenate(list(in_batches(_similarity(module), variables, read, len(images))))
    vision = module.vision
    words = [
        f"CLIP of width {vision.width}, depth {vision.depth} and patches of {vision.patch_size}, weights' "
        f"SHA-256 {weights}",
        f"{len(images)} samples, rounded to bytes, the shorter side to {vision.image_size} by antialiased "
        "bicubic interpolation, not rounded after, and the middle of the longer",
        "mean over samples of max(100·cosine, 0) with their prompts as they are, nothing before them",
    ]
    return {
        "clip_score": float(np.maximum(100 * cosines.astype(np.float64), 0).mean()),
        "clip_protocol": "; ".join(words),
    }


def evaluate_prompt_features(task: Any, state: Any, config: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """`evaluate_features` of `config.evaluation.num_samples` samples, for one prompt after the other and then
    from the first again.

    Each `PROMPTS` samples have a seed of their own: `config.sampling.seed` and those that follow.
    """
    if not given_features(config):
        return {}
    count = config.evaluation.num_samples
    asked, images = [prompts[i % len(prompts)] for i in range(count)], []
    size = min(PROMPTS, count)
    for number, start in enumerate(range(0, count, size)):
        some = [asked[i % count] for i in range(start, start + size)]  # one shape, one program
        sampling = Config(dict(config.sampling) | {"seed": config.sampling.seed + number})
        images.append(sample_images(task.asked(some), state, np.arange(size), sampling))
    images = np.concatenate(images)[:count]
    report = evaluate_features(images, config, asked)
    return report | {"features_prompts": f"{min(count, len(prompts))} held-out prompts for {count} samples"}
