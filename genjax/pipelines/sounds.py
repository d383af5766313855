"""Sounds from prompts, by a diffusion network in latent space."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from genjax.nn.chunking import decode_chunked
from genjax.pipelines.generation import Pipeline


class TimedPrompt(NamedTuple):
    """The condition of a network of sounds: a text, and the seconds of the sound's start and end.

    Attributes:
        text: None for the unconditional sound of Stable Audio, without text and timing tokens.
    """

    text: str | None
    start: float
    end: float


class SoundPipeline(Pipeline):
    """A system that makes sounds: `pipeline(prompts, end=10.0, seeds=…)` returns waveforms.

    Each sound is a function of its prompt, its seconds and its seed alone. The network always makes
    latents of `size` samples, which are decoded in overlapping windows and then cut. So other
    seconds compile nothing, and decoding takes the memory of one window. A `guidance_scale` above 1
    guides away from negative prompts, or by default from the unconditional sound.

    Args:
        autoencoder: has `factor`, `sample_rate`, `decoder_margin`, `latent_mean`,
            `latent_deviation` and `decode`.
        condition: maps a list of `TimedPrompt` to the network's condition.
        empty: the text of the unconditional sound, as in `TimedPrompt`.
        size: `(samples,)`, the number of samples that the network makes, a multiple of `factor`.
        options: further arguments of `Pipeline`.
    """

    @property
    def seconds(self) -> float:
        """The longest sound, in seconds."""
        return self.size[0] / self.autoencoder.sample_rate

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        start: float = 0.0,
        end: float | None = None,
        **options: Any,
    ) -> Float[np.ndarray, "batch samples channels"]:
        """Make a sound for each prompt, at `sample_rate` of the autoencoder.

        Args:
            prompts: as of `latents`.
            start, end: the seconds to return, which the network takes too; the whole if None.
            options: the other arguments of `latents`.

        Raises:
            ValueError: as of `latents`.
        """
        latents = self.latents(prompts, start=start, end=end, **options)
        waveform = np.asarray(self._decode(self.variables["autoencoder"], latents))
        end = self.seconds if end is None else end
        first, last = (round(seconds * self.autoencoder.sample_rate) for seconds in (start, end))
        return waveform[:, first:last]

    def latents(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        negative_prompts: Sequence[str] | None = None,
        start: float = 0.0,
        end: float | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        noise: np.ndarray | Array | None = None,
    ) -> Float[Array, "batch frames channels"]:
        """Sample the normalized latents of a sound for each prompt.

        Args:
            prompts: texts, one for each sound.
            seeds: one for each sound, from 0 to 2³² − 1; 0, 1, … if None.
            negative_prompts: texts to guide away from, one for each sound.
            start, end: the seconds of the sound, which the network takes; the whole if None.
            num_steps: the number of steps, at least 1.
            guidance_scale: see the class.
            noise: initial latents of unit variance that replace those drawn from the seeds, `[batch
                frames latent_channels]`.

        Raises:
            ValueError: an argument has another number, shape, type or range than described here, or
                negative prompts have no effect.
        """
        batch = self._checked_count(prompts, negative_prompts, seeds=seeds)
        end = self.seconds if end is None else end
        if not 0 <= start < end <= self.seconds:
            raise ValueError(
                f"start={start} and end={end} are no part of {self.seconds:g} seconds, the most "
                "that this system makes"
            )
        shape = (self.size[0] // self.autoencoder.factor, self.channels)
        times = self._times(num_steps, shape, None)
        keys = self._keys_of(seeds, batch)
        noise = self._start(noise, keys, times[0], shape)
        if negative_prompts is None and self._checked_scale(guidance_scale) > 1:
            negative_prompts = [self.empty] * batch
        timed = lambda texts: texts and [TimedPrompt(text, start, end) for text in texts]
        conditions = self._conditions(
            timed(prompts), timed(negative_prompts), self.size, guidance_scale, 1.0
        )
        return self._denoise(
            self.variables["network"], keys, noise, *conditions, times, None, None, None
        )

    def _decoded(
        self, variables: Any, latents: Float[Array, "batch frames channels"]
    ) -> Float[Array, "batch samples audio_channels"]:
        return decode_chunked(self.autoencoder, variables, latents * self.deviation + self.mean)
