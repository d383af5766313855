"""Do pictures show what their prompts say? By a scorer of pairs fitted to the real ones, beside the distances of any images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from experiments.evaluation.autoencoders import in_batches
from experiments.evaluation.images import beside_training, pixel_features
from experiments.inputs.datasets import load_split
from experiments.launch.opening import Config
from experiments.launch.sampling import sample_images
from genjax import metrics
from genjax.data import to_float
from genjax.models.encoders.vgg16 import VGG16
from genjax.pretrained.lpips import load_vgg16

CANDIDATES, SIDE = 10, 64


@jax.jit
def _maps(
    variables: Any, images: UInt8[Array, "batch height width channels"]
) -> Float[Array, "batch features"]:
    """Means and largest values over positions of all VGG16's maps, of images enlarged to `SIDE` pixels."""
    images = to_float(images)
    images = jax.image.resize(images, (len(images), SIDE, SIDE, images.shape[-1]), "nearest")
    maps = VGG16().apply(variables, images)
    return jnp.concatenate([pool(each, (1, 2)) for pool in (jnp.mean, jnp.max) for each in maps], axis=1)


class Pairs:
    """The training and held-out pictures with their names, and a scorer of pairs.

    The scorer is a ridge regression from VGG16's features of training pictures to MiniLM's embeddings of their names:
    nothing of a generator is in it, but that a generator may have been told its prompts by the same MiniLM.

    Attributes:
        names: by split, the first caption of each picture.
        images: by split, bytes.
        real: by split, the scorer's accuracy on the real pictures.
        floor: FD-VGG16 of as many training as held-out pictures to the held-out ones.
    """

    def __init__(self, config: Any, conditioning: Any):
        self.names, self.images, self.features = {}, {}, {}
        _, self._vgg16 = load_vgg16()
        self._conditioning = conditioning
        for split in (config.data.train_split, config.data.held_out_split):
            dataset = load_split(config, split)
            rows = np.random.default_rng(0).permutation(len(dataset.source))
            self.names[split] = tuple(dataset.captions[i][0] for i in rows)
            self.images[split] = dataset.source[rows]["image"]
            self.features[split] = self.features_of(self.images[split])
        self.train, self.held_out = self.names
        embeddings = conditioning.embeddings(self.names[self.train])
        self._score = metrics.ridge_scorer(self.features[self.train], embeddings)
        count = len(self.names[self.held_out])
        self.real = {
            split: self.accuracy(self.features[split][:count], names[:count])
            for split, names in self.names.items()
        }
        self.floor = self.distance(self.features[self.train][:count])

    def features_of(self, images: UInt8[np.ndarray, "images height width channels"]) -> np.ndarray:
        return in_batches(lambda x: _maps(self._vgg16, x), images)

    def accuracy(self, features: np.ndarray, names: tuple[str, ...]) -> float:
        """How often a picture's own name scores above nine others of `names`."""
        scores = self._score(features, self._conditioning.embeddings(names))
        return metrics.retrieval_accuracy(scores, CANDIDATES)

    def distance(self, features: np.ndarray) -> float:
        """Fréchet distance of the last maps' means (FD-VGG16) to those of held-out pictures."""
        widths = VGG16().widths
        last = slice(sum(widths[:-1]), sum(widths))
        held_out = self.features[self.held_out]
        return float(metrics.frechet_distance(features[: len(held_out), last], held_out[:, last]))


def evaluate_prompts(task: Any, state: Any, config: Any, reference: Pairs) -> dict[str, Any]:
    """One picture for each of as many training names as there are held-out ones, and for each of these.

    `…accuracy` is how often the scorer prefers a picture's own name to nine others of the same split (chance 10 %), at the
    run's guidance scale and, `…_unguided`, at 1; `…_real` that of the real pictures. Distances are those of pictures of
    training names, of pixels as for any images and FD-VGG16, to the held-out pictures.
    """
    count, splits = len(reference.names[reference.held_out]), (reference.train, reference.held_out)
    report, drawn = {}, {}
    for scale, suffix in ((config.sampling.guidance_scale, ""), (1.0, "_unguided")):
        for split, kind in zip(splits, ("training", "held_out"), strict=True):
            names = reference.names[split][:count]
            sampling = Config(dict(config.sampling) | {"guidance_scale": scale})
            images = sample_images(task.asked(names), state, np.arange(count), sampling)
            features = reference.features_of(images)
            report[f"{kind}_accuracy{suffix}"] = reference.accuracy(features, names)
            if not suffix:
                drawn[kind] = images, features
                report[f"{kind}_accuracy_real"] = reference.real[split]
    images, features = drawn["training"]
    real, unseen = (pixel_features(reference.images[split]) for split in splits)
    return report | {
        "candidates": CANDIDATES,
        "fd_vgg16": reference.distance(features),
        "fd_vgg16_train": reference.floor,
        **beside_training(pixel_features(images), real, unseen),
        "nearest_neighbour_ratio": float(
            metrics.nearest_neighbour_ratio(pixel_features(images), real, unseen)
        ),
        "num_samples": len(images),
        "held_out_prompts": task.picture(drawn["held_out"][0][:100], 10),
        **task.describe_sampling(config.sampling),
        "weights": config.sampling.weights,
        "seed": config.sampling.seed,
    }
