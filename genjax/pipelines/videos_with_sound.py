"""Videos with sound from prompts, by a network of both."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt8

from genjax import diffusion
from genjax.diffusion.guidance import blend, predict_jointly
from genjax.diffusion.guidance_rules import rescaled
from genjax.diffusion.processes import prior
from genjax.diffusion.targets import Prediction, clean, recover
from genjax.models.transformers.ltx2 import LATENTS_PER_SECOND, STREAMS
from genjax.nn.chunking import decode_chunked
from genjax.pipelines.generation import Pipeline

Scale = float | Mapping[str, float]
Latents = dict[str, Float[Array | np.ndarray, "batch ..."]]


class VideoWithSound(NamedTuple):
    """Videos of bytes and their sound.

    Attributes:
        frames: of the videos.
        waveform: in [−1, 1].
        sample_rate: samples per second of the waveform.
    """

    frames: UInt8[np.ndarray, "batch frames height width 3"]
    waveform: Float[np.ndarray, "batch samples channels"]
    sample_rate: int


class Scales(NamedTuple):
    """How far to go from three worse predictions: numbers, or one for "video" and for "audio".

    A difference takes no evaluation of the network if it counts nowhere: where `guidance` is at
    most 1, `perturbation` is 0, or `isolation` is at most 1.

    Attributes:
        guidance: from that of negative prompts; 1 is plain conditional sampling.
        perturbation: from that of a network in some of whose blocks tokens attend to themselves
            alone (Hyung et al. 2025, spatio-temporal skip guidance); 0 leaves it out.
        isolation: from that of streams that do not attend to each other; 1 leaves it out.
        rescale: how much of the guided prediction gets the deviation of the plain one, in [0, 1]
            (Lin et al. 2024, section 3.4).
    """

    guidance: Scale
    perturbation: Scale
    isolation: Scale
    rescale: Scale


class Condition(NamedTuple):
    """The condition of one evaluation of the network.

    Attributes:
        text: for each stream, as the network takes it.
        perturbed: the blocks in which tokens attend to themselves alone.
        isolated: whether the streams do not attend to each other.
    """

    text: PyTree
    perturbed: Bool[Array, "batch depth"]
    isolated: Bool[Array, " batch"]


def guide_away(
    denoiser: Callable[..., Prediction],
    process: diffusion.Process,
    conditions: Sequence[PyTree],
    weights: Sequence[PyTree],
    rescale: PyTree,
) -> Callable[..., Prediction]:
    """Return the denoiser of x̂₀ + Σᵢ wᵢ·(x̂ᵢ − x̂₀), rescaled, with all x̂ᵢ from one network call.

    Args:
        denoiser: `(x_t, t, condition) -> Prediction`.
        conditions: those of x̂₀, x̂₁, …, trees of leaves `[batch …]`.
        weights: of x̂₁, …; numbers, or trees of numbers like x_t. Negative ones move away.
        rescale: phi of `guidance_rules.rescaled`, a number or a tree.
    """

    def guided(x_t: PyTree, t: PyTree) -> Prediction:
        plain, *others = predict_jointly(denoiser, x_t, t, conditions)
        if not others:
            return plain
        answers = [lambda x_t, t, each=each: each for each in (plain, *others)]
        total = blend(answers, weights)(x_t, t).clean
        total = rescaled(plain.clean, total, 0.0, phi=rescale)  # at scale 0, of `total` alone
        return recover(process, clean, x_t, total, t)

    return guided


class VideoSoundPipeline(Pipeline):
    """A system that makes videos with sound: `pipeline(prompts, seeds=…)` returns both.

    Each result is a function of its prompt and its seed alone. One program denoises video and audio
    together, and one decodes both. All predictions of a step, for guidance, are of one call of the
    network. Other scales, blocks, frame rates and negative prompts compile nothing, unless a
    difference comes or goes (`Scales`) or the sound has another length.

    Args:
        sound: autoencoder and vocoder of the sound, each with its variables. From latents
            `[batch length bins·channels]` the autoencoder makes spectrograms, and the vocoder
            waveforms, both by `decode_chunked`, so memory does not grow with the length.
        frame_rate: the default number of frames per second.
        scales: the default scales.
        perturbed_blocks: the default blocks of the perturbation.
        options: further arguments of `Pipeline`.
    """

    def __init__(
        self,
        network: nn.Module,
        autoencoder: nn.Module,
        variables: dict[str, PyTree],
        *,
        sound: tuple[tuple[nn.Module, PyTree], tuple[nn.Module, PyTree]],
        frame_rate: float,
        scales: Scales,
        perturbed_blocks: Sequence[int],
        **options: Any,
    ):
        (self.audio_autoencoder, audio_variables), (self.vocoder, vocoder_variables) = sound
        variables = variables | dict(audio_autoencoder=audio_variables, vocoder=vocoder_variables)
        options["guidance_scale"] = _of_streams(scales.guidance)["video"]
        super().__init__(network, autoencoder, variables, **options)
        self.frame_rate, self.scales = frame_rate, scales
        self.perturbed_blocks = perturbed_blocks
        audio = self.audio_autoencoder
        self.audio_mean = np.asarray(audio.latent_mean, np.float32)
        self.audio_deviation = np.asarray(audio.latent_deviation, np.float32)
        self._decode_sound = jax.jit(self._decoded_sound)

    def __call__(self, prompts: Sequence[str], **options: Any) -> VideoWithSound:
        """Make a video with sound for each prompt; arguments and errors are those of `latents`."""
        return self.decode(self.latents(prompts, **options))

    def latents(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        negative_prompts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        frame_rate: float | None = None,
        num_steps: int | None = None,
        times: Sequence[float] | None = None,
        guidance_scale: Scale | None = None,
        perturbation_scale: Scale | None = None,
        isolation_scale: Scale | None = None,
        rescale: Scale | None = None,
        perturbed_blocks: Sequence[int] | None = None,
        noise: Latents | None = None,
    ) -> Latents:
        """Return the latents "video" and "audio" of each prompt, for `decode`.

        Args:
            prompts: texts, one for each video.
            seeds: one for each video, from 0 to 2³² − 1; 0, 1, … if None.
            negative_prompts: prompts to guide away from, one for each video.
            size: height and width in pixels.
            frames: number of frames, 1 + n·`temporal_factor` of the autoencoder.
            frame_rate: frames per second, of which the length of the sound follows too.
            num_steps: the number of steps, at least 1.
            times: the times of the steps, from 1 to 0, instead of those of the schedule.
            guidance_scale, perturbation_scale, isolation_scale, rescale: see `Scales`.
            perturbed_blocks: numbers of the blocks that are perturbed, from 0.
            noise: initial latents that replace those drawn from the seeds: video `[batch time rows
                columns channels]`, and audio `[batch length channels]`.

        Raises:
            ValueError: an argument has another number, shape or range than described here; or
                negative prompts have no effect.
        """
        batch = self._checked_count(prompts, negative_prompts, seeds=seeds)
        rate = self.frame_rate if frame_rate is None else frame_rate
        if not 0 < rate < np.inf:
            raise ValueError(f"frame_rate={rate}; frames per second are a number above 0")
        shapes = self._shapes(size, frames, rate)
        times = self._times(num_steps, shapes["video"], None) if times is None else _checked(times)
        given = (guidance_scale, perturbation_scale, isolation_scale, rescale)
        pairs = zip(given, self.scales, strict=True)
        scales = Scales(*(_of_streams(own if new is None else new) for new, own in pairs))
        blocks = self.perturbed_blocks if perturbed_blocks is None else perturbed_blocks
        keys = self._keys_of(seeds, batch)
        noise = self._start(noise, keys, times[0], shapes)
        conditions, weights = self._evaluations(prompts, negative_prompts, scales, blocks)
        inputs = conditions, weights, scales.rescale, times, jnp.float32(rate)
        return self._denoise(self.variables["network"], keys, noise, *inputs)

    def decode(self, latents: Latents) -> VideoWithSound:
        """Return the frames and the sound of latents."""
        variables = [self.variables[name] for name in ("audio_autoencoder", "vocoder")]
        return VideoWithSound(
            np.asarray(self._decode(self.variables["autoencoder"], latents["video"])),
            np.asarray(self._decode_sound(variables, latents["audio"])),
            self.vocoder.sample_rate,
        )

    def networks(self) -> dict[str, tuple[nn.Module, PyTree]]:
        """Return the networks that `save` writes: those of `Pipeline`, and those of the sound."""
        return super().networks() | dict(
            audio_vae=(self.audio_autoencoder, self.variables["audio_autoencoder"]),
            vocoder=(self.vocoder, self.variables["vocoder"]),
        )

    def _shapes(
        self, size: tuple[int, int] | None, frames: int | None, rate: float
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one example's latents.

        Raises:
            ValueError: size or frames do not divide into latents.
        """
        size = self._checked_size(size, None, None)
        frames, sound = self._checked_frames(frames), self.audio_autoencoder
        length = max(1, round(frames / rate * LATENTS_PER_SECOND))
        return dict(
            video=self._latent_shape(size, frames),
            audio=(length, sound.latent_channels * sound.bins // sound.factor),
        )

    def _evaluations(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None,
        scales: Scales,
        blocks: Sequence[int],
    ) -> tuple[list[Condition], list[PyTree]]:
        """Return the conditions of all evaluations of a step, and the weights of all but the first.

        A scale that switches guidance off for one stream has the weight 0 there.

        Raises:
            ValueError: negative prompts have no effect, or a block does not exist.
        """
        batch, depth = len(prompts), self.network.depth
        if any(not 0 <= block < depth for block in blocks):
            raise ValueError(f"perturbed_blocks={list(blocks)}; the network has 0 to {depth - 1}")
        guided = max(scales.guidance.values()) > 1
        if negative_prompts is not None and not guided:
            raise ValueError(
                f"negative_prompts have no effect where guidance_scale={scales.guidance}: raise it "
                "above 1, or leave negative_prompts out"
            )
        text, no = self.condition(prompts), np.zeros(batch, bool)
        none, some = np.zeros((2, batch, depth), bool)
        some[:, list(blocks)] = True
        conditions, weights = [Condition(text, none, no)], []
        if guided:
            negatives = [self.empty] * batch if negative_prompts is None else negative_prompts
            conditions.append(Condition(self.condition(negatives), none, no))
            weights.append({name: 1 - max(scale, 1.0) for name, scale in scales.guidance.items()})
        if max(scales.perturbation.values()) > 0:
            conditions.append(Condition(text, some, no))
            weights.append({name: -max(scale, 0.0) for name, scale in scales.perturbation.items()})
        if max(scales.isolation.values()) > 1:
            conditions.append(Condition(text, none, ~no))
            weights.append({name: 1 - max(scale, 1.0) for name, scale in scales.isolation.items()})
        return self._placed(conditions), weights

    def _start(
        self,
        noise: Latents | None,
        keys: Array,
        time: Array,
        shapes: dict[str, tuple[int, ...]],
    ) -> Latents:
        """Return the given noise, or noise drawn from the keys."""
        if noise is None:
            return self._placed(self._draw(keys, time, tuple(shapes.items())))
        for name, shape in shapes.items():
            if noise[name].shape != (len(keys), *shape):
                raise ValueError(
                    f"noise of {name} has shape {noise[name].shape}; these videos start from "
                    f"{(len(keys), *shape)}"
                )
        return self._placed(noise)

    def _noise_of(self, keys, time, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Latents:
        like = {name: jax.ShapeDtypeStruct((len(keys), *s), jnp.float32) for name, s in shapes}
        return prior(keys, self.process, like, time)

    def _denoised(
        self, variables, keys, noise, conditions, weights, rescale, times, frame_rate
    ) -> Latents:
        def apply(x, t, condition):
            return self.network.apply(variables, x, t, condition.text, frame_rate, *condition[1:])

        denoiser = diffusion.predict(apply, self.process, self.target)
        guided = guide_away(denoiser, self.process, conditions, weights, rescale)
        return self.sampler(guided, self.process, noise, times, keys=keys)

    def _decoded_sound(
        self, variables, latents: Float[Array, "batch length features"]
    ) -> Float[Array, "batch samples channels"]:
        autoencoder, vocoder = variables
        latents = latents * self.audio_deviation + self.audio_mean
        # A token has the bins of the first channel first.
        bins = self.audio_autoencoder.bins // self.audio_autoencoder.factor
        latents = latents.reshape(*latents.shape[:2], -1, bins).swapaxes(2, 3)
        spectrogram = decode_chunked(self.audio_autoencoder, autoencoder, latents)
        return decode_chunked(self.vocoder, vocoder, spectrogram, method="__call__")


def _of_streams(scale: Scale) -> dict[str, float]:
    """Return a scale for each stream.

    Raises:
        ValueError: the scale is a mapping without both streams, or not finite.
    """
    scales = scale if isinstance(scale, Mapping) else dict.fromkeys(STREAMS, scale)
    if set(scales) != set(STREAMS) or not all(map(math.isfinite, scales.values())):
        raise ValueError(f"a scale is a finite number, or one for video and for audio; got {scale}")
    return {name: float(scales[name]) for name in STREAMS}


def _checked(times: Sequence[float]) -> Float[Array, " times"]:
    """Return times as an array.

    Raises:
        ValueError: the times do not fall from at most 1 to 0.
    """
    values = np.asarray(times, np.float32)
    falls = len(values) > 1 and values[0] <= 1 and np.all(np.diff(values) < 0)  # no NaN does
    if not falls or values[-1] != 0:
        raise ValueError(f"times={list(times)} do not fall from at most 1 to 0")
    return jnp.asarray(values)
