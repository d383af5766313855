"""Measures of how well samples keep their given frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from experiments.evaluation.context import Context, Model, in_batches
from experiments.inputs.clips import CaptionedClips
from genjax.diffusion import given_mask


def shown_frames(given: Sequence[int], frames: int, length: int) -> np.ndarray:
    """Return the numbers of a clip's frames that show the given frames of its latents.

    The first of `frames` latent frames stands for one frame, the others share the rest.

    Args:
        given: numbers of latent frames.
        length: number of frames of the clip.
    """
    latent = given_mask(given, frames)
    later = np.repeat(latent[1:], (length - 1) // (frames - 1))
    return np.flatnonzero(np.concatenate([latent[:1], later]))


@dataclass(frozen=True)
class GivenFrames:
    """Measure how far samples of held-out clips are from the frames that they were given.

    `given_frames_error` is the root of the mean squared error, in levels of 255. The autoencoder's
    own reconstruction has the error `given_frames_error_reconstruction`, the least there can be.
    """

    context: Context
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 1

    def __post_init__(self):
        if not isinstance(self.context.condition, CaptionedClips):
            raise ValueError(
                "config.evaluation.measures has GivenFrames, which needs "
                "config.condition.name=CaptionedClips"
            )

    def __call__(self, model: Model) -> dict[str, Any]:
        held_out = self.context.data.held_out()
        clips = held_out.source[: self.context.num_samples][self.context.data.feature]
        captions = tuple(texts[0] for texts in held_out.captions[: len(clips)])
        if not model.sampling.given:
            return {}
        shown = shown_frames(model.sampling.given, self.context.space.shape[0], clips.shape[1])
        samples = model.sample(np.arange(len(clips)), captions)
        error = lambda made: float(
            np.sqrt(np.mean((made[:, shown].astype(float) - clips[:, shown]) ** 2))
        )
        report = {"given_frames": shown.tolist(), "given_frames_error": error(samples)}
        if reconstruct := model.functions.get("reconstruct"):
            reconstructions = in_batches(reconstruct, clips)
            report["given_frames_error_reconstruction"] = error(reconstructions)
        return report
