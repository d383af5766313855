"""Measures of whether samples have the pitches that their captions name, by CREPE."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int16

from experiments.evaluation.context import Context, Model, in_batches
from experiments.evaluation.sounds import BATCH, Sounds, check_prompted_sounds, prompted_sounds
from genjax.data import sound_to_float
from genjax.data.sets.notes import parse_pitch
from genjax.models.encoders.crepe import CREPE, crepe_pitches
from genjax.pretrained import crepe

SURE = 0.5  # probability of the likeliest bin, from which a frame counts


@functools.partial(jax.jit, static_argnums=(0, 3))
def _hear(
    module: CREPE, variables: Any, sounds: Int16[Array, "batch samples channels"], rate: int
) -> tuple[Float[Array, "batch frames"], Float[Array, "batch frames"]]:
    return crepe_pitches(module, variables, sound_to_float(sounds), rate)


def estimate_pitches(
    sounds: Sounds, sample_rate: int, module: CREPE, variables: Any
) -> Float[np.ndarray, " sounds"]:
    """Return the median pitch of each sound, on MIDI's scale of semitones; NaN if none is heard.

    Args:
        sample_rate: of the sounds, in Hz.
        module, variables: as of `genjax.pretrained.crepe.load`.
    """
    hear = lambda batch: _hear(module, variables, batch, sample_rate)
    hertz, sure = in_batches(hear, sounds, size=BATCH)
    semitones = 69 + 12 * np.log2(hertz / 440)
    return np.array(
        [
            np.median(pitch[at]) if (at := probability >= SURE).any() else np.nan
            for pitch, probability in zip(semitones, sure, strict=True)
        ]
    )


@dataclass(frozen=True)
class NotePitches:
    """Measure how often CREPE hears the pitch that a sample's caption names.

    The prompts are held-out captions. `pitch_accuracy` is the share of samples whose median pitch
    lies within half a semitone of the named one. `pitch_accuracy_chance` is the mean accuracy of
    the same answers in all orders, and `pitch_accuracy_real` that of held-out recordings.
    `pitch_accuracy_reconstructed` is the same share after the space of the network and back. In
    0.3 s of each of 155 notes of the data set, the tiny CREPE hears 98.7 % right.

    Attributes:
        crepe: weights of the tiny CREPE, which `genjax.pretrained.crepe.load` reads.
    """

    context: Context
    crepe: str
    needs: ClassVar[tuple[str, ...]] = ()
    least_held_out: ClassVar[int] = 2

    def __post_init__(self):
        """Check data, condition and weights before any training.

        Raises:
            ValueError, FileNotFoundError: the data are no sounds, the network takes no prompts, or
                as of `crepe.load`.
        """
        check_prompted_sounds("NotePitches", self.context)
        crepe.load(self.crepe)

    def __call__(self, model: Model) -> dict[str, Any]:
        captions, played = prompted_sounds(self.context, model)
        asked, report = np.array([parse_pitch(each) for each in captions]), {}
        network = crepe.load(self.crepe)
        for suffix, sounds in played.items():
            heard = estimate_pitches(sounds, self.context.space.sample_rate, *network)
            right = lambda asked, heard=heard: np.abs(heard - asked) <= 0.5
            report[f"pitch_accuracy{suffix}"] = float(np.mean(right(asked)))
            if not suffix:
                report["pitch_accuracy_chance"] = float(np.mean(right(asked[:, None])))
        return report | {"num_samples": len(asked), **model.how}
