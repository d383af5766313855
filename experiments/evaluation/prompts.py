"""Measures of how well pictures and clips match their prompts, by a scorer fitted to real pairs."""

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from experiments.evaluation.autoencoders import as_frames, vgg16_protocol
from experiments.evaluation.context import Context, Model, in_batches
from experiments.evaluation.images import compare_with_training, pixel_features, pixel_protocol
from experiments.evaluation.protocol import FeatureProtocol
from experiments.inputs.conditions import Prompts
from experiments.inputs.datasets import Data, labels_of
from genjax import metrics
from genjax.data import Dataset, to_float
from genjax.models.encoders.vgg16 import VGG16
from genjax.pretrained.lpips import load_vgg16, require_lpips
from genjax.training.pictures import paired_grid

CANDIDATES, SIDE = 10, 64
FRAMES = 3  # of a clip


@jax.jit
def _maps(
    variables: Any, images: UInt8[Array, "batch height width channels"]
) -> Float[Array, "batch features"]:
    """Return means and maxima over positions of all VGG16's maps.

    Images are first enlarged to `SIDE` pixels.
    """
    images = to_float(images)
    images = jax.image.resize(images, (len(images), SIDE, SIDE, images.shape[-1]), "nearest")
    with jax.default_matmul_precision("highest"):  # an accuracy does not depend on the device
        maps = VGG16().apply(variables, images)
    return jnp.concatenate(
        [pool(each, (1, 2)) for pool in (jnp.mean, jnp.max) for each in maps], axis=1
    )


def frames_of(
    examples: UInt8[np.ndarray, "examples *time height width channels"],
) -> UInt8[np.ndarray, "examples frames height width channels"]:
    """Return `FRAMES` equally spaced frames of clips, the first and the last among them.

    A picture is its own and only frame.
    """
    if examples.ndim == 4:
        return examples[:, None]
    rows = np.linspace(0, examples.shape[1] - 1, FRAMES).round().astype(int)
    return examples[:, rows]


class Pairs:
    """The training and held-out pictures or clips with their names, and a scorer of pairs.

    The scorer is a ridge regression from VGG16's features of training pictures to embeddings of
    their names. It shares nothing with a generator, except possibly the text encoder. A clip's
    features are the means of those of its frames (`frames_of`).

    Attributes:
        names: by split, the first caption of each picture.
        images: by split, bytes: pictures or clips.
        labels: by split, the class of each picture, or 0.
        real: by split, the scorer's accuracy on the real pictures.
        floor: FD-VGG16 of training pictures to held-out ones, of equal numbers.
    """

    def __init__(self, data: Data, condition: Prompts):
        self.names, self.images, self.labels, self.features = {}, {}, {}, {}
        _, self._vgg16 = load_vgg16()
        self._condition = condition
        for split in (data.train_split, data.held_out_split):
            dataset = data.load(split)
            rows = np.random.default_rng(0).permutation(len(dataset.source))
            self.names[split] = tuple(dataset.captions[i][0] for i in rows)
            examples = dataset.source[rows]
            self.images[split], self.labels[split] = examples[data.feature], labels_of(examples)
            self.features[split] = self.features_of(self.images[split])
        self.train, self.held_out = self.names
        embeddings = condition.embeddings(self.names[self.train])
        self._score = metrics.ridge_scorer(self.features[self.train], embeddings)
        count = len(self.names[self.held_out])
        self.real = {
            split: self.accuracy(self.features[split][:count], names[:count])
            for split, names in self.names.items()
        }
        self.floor = self.distance(self.features[self.train][:count])

    def features_of(
        self, images: UInt8[np.ndarray, "images *time height width channels"]
    ) -> Float[np.ndarray, "images features"]:
        frames = frames_of(images)
        maps = in_batches(lambda x: _maps(self._vgg16, x), as_frames(frames))
        return maps.reshape(*frames.shape[:2], -1).mean(1)

    def accuracy(self, features: np.ndarray, names: tuple[str, ...]) -> float:
        """Return how often a picture's own name scores above nine other names.

        Of pictures with the same name the first is taken, since equal names would tie.
        """
        rows = np.sort(np.unique(names, return_index=True)[1])
        if len(rows) < CANDIDATES:
            raise ValueError(
                f"{len(names)} pictures have {len(rows)} different names; PromptMatch chooses "
                f"among {CANDIDATES}: use a larger split, or remove the measure from the config"
            )
        distinct = tuple(names[row] for row in rows)
        scores = self._score(features[rows], self._condition.embeddings(distinct))
        return metrics.retrieval_accuracy(scores, CANDIDATES)

    def distance(self, features: np.ndarray) -> float:
        """Return the Fréchet distance of the last maps' means (FD-VGG16) to held-out pictures.

        Equally many of both are compared.
        """
        widths = VGG16().widths
        last = slice(sum(widths[:-1]), sum(widths))
        held_out = self.features[self.held_out]
        count = min(len(features), len(held_out))
        return metrics.frechet_distance(features[:count, last], held_out[:count, last])


pairs_of = functools.lru_cache(maxsize=2)(Pairs)  # computed once for each data set


@dataclass(frozen=True)
class PromptMatch:
    """Measure how often a scorer prefers a picture's own name to nine others, and distances.

    One picture is made for each held-out name, and for as many training names, or for all of them
    if there are fewer. `…accuracy` draws the nine others from names of the same split, so chance is
    10 %. The guidance scale is the run's; `…_unguided` is at scale 1, and `…_real` is of the real
    pictures. Distances compare pictures of training names with held-out pictures, by pixels and by
    FD-VGG16.

    A network without prompts makes a picture of each name's class, or of nothing. It then shares
    the evaluation of networks that see the whole name.

    Of clips, `FRAMES` frames are looked at, and accuracies alone are measured: `VideoDistance` has
    distances of clips.

    Attributes:
        captions: encodes names for the scorer, if the network's condition is no `Prompts`.
    """

    context: Context
    captions: Prompts | None = None
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = CANDIDATES

    @staticmethod
    def count_held_out(dataset: Dataset) -> int:
        """Return how many names differ, since the measure chooses among different names."""
        if dataset.captions is None:  # an error of the condition, which says so
            return len(dataset.source)
        return len({captions[0] for captions in dataset.captions})

    def __post_init__(self):
        require_lpips()
        if self.context.data.feature not in ("image", "video"):
            raise ValueError(
                "config.evaluation.measures has PromptMatch, which scores pictures and clips; "
                f"config.data.feature is {self.context.data.feature!r}: leave it out"
            )
        if self.captions is None and not isinstance(self.context.condition, Prompts):
            raise ValueError(
                "config.evaluation.measures has PromptMatch, which needs a network with prompts; "
                f"config.condition is {type(self.context.condition).__name__}, so give the measure "
                "captions, which encode the names"
            )

    def features(self) -> dict[str, FeatureProtocol]:
        """Return how samples become features, for the protocol."""
        enlarged = dict(resizing=f"nearest pixel, to {SIDE}×{SIDE}", antialiasing=False)
        vgg16 = replace(vgg16_protocol()["vgg16"], **enlarged)
        if self.context.data.feature == "video":
            of_frames = f"{vgg16.network}, averaged over {FRAMES} equally spaced frames"
            return {"vgg16": replace(vgg16, network=of_frames)}
        return pixel_protocol(self.context.data) | {"vgg16": vgg16}

    def __call__(self, model: Model) -> dict[str, Any]:
        reference = pairs_of(self.context.data, self.captions or self.context.condition)
        report, drawn = self._accuracies(model, reference)
        clips = self.context.data.feature == "video"
        middle = lambda images: frames_of(images[:50])[:, FRAMES // 2 if clips else 0]
        rows = {
            "original": middle(reference.images[reference.held_out]),
            "sample": middle(drawn["held_out"][0]),
        }
        return report | {
            "candidates": CANDIDATES,
            **({} if clips else self._distances(reference, *drawn["training"])),
            "num_samples": len(drawn["training"][0]),
            "held_out_prompts": paired_grid(rows),
            **model.how,
        }

    def _distances(
        self,
        reference: Pairs,
        images: UInt8[np.ndarray, "images height width channels"],
        features: Float[np.ndarray, "images features"],
    ) -> dict[str, float]:
        """Return distances of pictures of training names to held-out pictures."""
        splits = reference.train, reference.held_out
        real, unseen = (pixel_features(reference.images[split]) for split in splits)
        pixels = pixel_features(images)
        return {
            "fd_vgg16": reference.distance(features),
            "fd_vgg16_train": reference.floor,
            **compare_with_training(pixels, real, unseen),
            **metrics.memorization(pixels, real, unseen)._asdict(),
        }

    def _accuracies(
        self, model: Model, reference: Pairs
    ) -> tuple[dict[str, float], dict[str, tuple]]:
        """Return accuracies, and pictures and features by kind at the run's guidance scale."""
        held_out = reference.names[reference.held_out]
        kinds = {"training": reference.train, "held_out": reference.held_out}
        guided = "guidance_scale" in model.sampling
        report, drawn = {}, {}
        for suffix in ("", "_unguided") if guided else ("",):
            changes = {"guidance_scale": 1.0} if suffix else {}
            for kind, split in kinds.items():
                names = reference.names[split][: len(held_out)]
                images = self._sample(model, reference, split, len(names), **changes)
                features = reference.features_of(images)
                report[f"{kind}_accuracy{suffix}"] = reference.accuracy(features, names)
                if not suffix:
                    drawn[kind] = images, features
                    report[f"{kind}_accuracy_real"] = reference.real[split]
        return report, drawn

    def _sample(
        self, model: Model, reference: Pairs, split: str, count: int, **changes: float
    ) -> UInt8[np.ndarray, "count *time height width channels"]:
        """Return a picture or clip for each of a split's first names, or of the names' classes.

        Clips with sound are returned without it.
        """
        if isinstance(self.context.condition, Prompts):
            names = reference.names[split][:count]
            samples = model.sample(np.arange(len(names)), names, **changes)
        else:
            samples = model.sample(reference.labels[split][:count], **changes)
        return samples["video"] if isinstance(samples, dict) else samples
