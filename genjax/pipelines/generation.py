"""Pictures and videos from prompts or classes, by a diffusion network in latent space."""

import math
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float, Key, PyTree, UInt8

from genjax import diffusion
from genjax.data import to_float, to_uint8
from genjax.diffusion.editing import check_known, last_steps
from genjax.nn.chunking import decode_chunked
from genjax.pipelines.experts import Experts
from genjax.pipelines.frames import CleanFrame, FrameChannels

# Number of the noise before decoding among those of a sample's key; samplers count steps from 0.
DECODING = np.uint32(2**32 - 2)


class Pipeline:
    """A system that makes pictures or videos: `pipeline(prompts, seeds=…)` returns them.

    Each picture is a function of its prompt and its seed alone; its batch and its devices do not
    matter. One program denoises, one decodes, and each text encoder has one. A second call with as
    many prompts, steps and pixels compiles nothing. Guidance scales above 1, negative prompts and
    seeds may change.

    A `guidance_scale` of at most 1, also 0, switches guidance off, as in the published pipelines:
    the picture is the plain conditional one. Above 1, Stable Diffusion 3, PixArt and DiT are guided
    away from negative prompts, or by default from the empty prompt or class. FLUX.1 dev takes its
    guidance scale as an input, any number from 0 on; FLUX.1 schnell ignores the scale. Both are
    guided away from negative prompts if `negative_scale` is above 1.

    Args:
        network: `apply(variables, x, t, condition, …)`, on latents: a module, or `Experts`.
        autoencoder: has `factor`, `latent_mean`, `latent_deviation`, `encode` and `decode`; for
            videos `temporal_factor` too. `decode_chunked` decodes, so memory does not grow with the
            length of videos with a `decoder_causal`.
        variables: those of the two, as `network` and `autoencoder`.
        condition: maps prompts, or class labels, to the network's condition.
        empty: the prompt, or label, to guide away from without a negative prompt.
        process, target, sampler: of `genjax.diffusion`. Functions of `genjax.pipelines.schedules`
            return these three and `grid` for a published schedule.
        grid: `(num_steps, tokens) -> times`, where tokens is the number of image tokens.
        size: the default (height, width) of pictures, in pixels.
        frames: the default number of frames of a video; None if the system makes pictures.
        given_frames: how the network takes a video's first and last frame, an object of
            `genjax.pipelines.frames`; None if it takes prompts alone.
        num_steps: the default number of steps.
        guidance_scale: the default guidance scale; a pair for `Experts`, of high and low noise.
        distilled: whether guidance is distilled into the network, as in FLUX.1. Then only
            `negative_scale` guides by a second condition. None means: true if the network takes a
            guidance scale.
        sharding: the sharding of batches on a mesh; the variables keep the sharding they were
            loaded with.
        folder: the folder of the parts, from which `genjax.pipelines.save` copies those that cannot
            change.
    """

    def __init__(
        self,
        network: nn.Module | Experts,
        autoencoder: nn.Module,
        variables: dict[str, PyTree],
        *,
        condition: Callable[[Sequence[Any]], PyTree],
        empty: str | int | None,
        process: diffusion.Process,
        target: Callable,
        sampler: Callable,
        grid: Callable[[int, int], Float[Array, " times"]],
        size: tuple[int, ...],
        frames: int | None = None,
        given_frames: CleanFrame | FrameChannels | None = None,
        num_steps: int,
        guidance_scale: float | tuple[float, float],
        distilled: bool | None = None,
        sharding: Sharding | None = None,
        folder: os.PathLike | None = None,
    ):
        self.network, self.autoencoder, self.variables = network, autoencoder, variables
        self.condition, self.empty = condition, empty
        self.process, self.target, self.sampler, self.grid = process, target, sampler, grid
        self.size, self.frames, self.given_frames = size, frames, given_frames
        self.num_steps, self.guidance_scale = num_steps, guidance_scale
        self.sharding, self.folder = sharding, folder
        self.takes_guidance = getattr(network, "takes_guidance", False)
        self.distilled = self.takes_guidance if distilled is None else distilled
        self.takes_size = getattr(network, "size_conditioning", False)
        self.channels = autoencoder.latent_channels
        self.mean = np.asarray(autoencoder.latent_mean, np.float32)
        self.deviation = np.asarray(autoencoder.latent_deviation, np.float32)
        self._draw = jax.jit(self._noise_of, static_argnums=2)
        self._denoise = jax.jit(self._denoised)
        self._encode, self._decode = jax.jit(self._encoded), jax.jit(self._decoded)

    def __call__(
        self,
        prompts: Sequence[Any],
        *,
        decode_time: float = 0.0,
        decode_noise: float | None = None,
        **options: Any,
    ) -> UInt8[np.ndarray, "batch *frames height width 3"]:
        """Make a picture, or a video, for each prompt.

        Args:
            prompts: as of `latents`.
            decode_time: the noise level, in [0, 1], for a decoder that takes it as an input, as
                LTX-Video's from version 0.9.1 on. Its authors take 0.05.
            decode_noise: the share of noise, in [0, 1], that the decoder's latents get;
                `decode_time` if None. LTX-Video's authors take 0.025.
            options: the other arguments of `latents`.

        Raises:
            ValueError: as of `latents`; or the decoder does not take these numbers.
        """
        level = self._checked_level(decode_time, decode_noise)
        latents = self.latents(prompts, **options)
        level = (self._keys_of(options.get("seeds"), len(prompts)), *level) if level else ()
        return np.asarray(self._decode(self.variables["autoencoder"], latents, *level))

    def latents(
        self,
        prompts: Sequence[Any],
        *,
        seeds: Sequence[int] | None = None,
        negative_prompts: Sequence[Any] | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        num_steps: int | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        negative_scale: float = 1.0,
        images: np.ndarray | Sequence[Any] | None = None,
        last_images: np.ndarray | Sequence[Any] | None = None,
        strength: float = 1.0,
        known: np.ndarray | Sequence[Any] | None = None,
        noise: np.ndarray | Array | None = None,
    ) -> Float[Array, "batch *places channels"]:
        """Sample the normalized latents of a picture, or a video, for each prompt.

        Args:
            prompts: a text or a class label for each picture. The label after the last is no class.
            seeds: one for each picture, from 0 to 2³² − 1; 0, 1, … if None.
            negative_prompts: prompts to guide away from, one for each picture.
            size: height and width in pixels.
            frames: number of frames of a video, 1 + n·`temporal_factor` of the autoencoder.
            num_steps: the number of steps, at least 1.
            guidance_scale, negative_scale: see the class. `Experts` take one scale, or a pair.
            images: bytes, `[batch height width 3]`, or a list of arrays or of PIL's images. Image
                to image: sampling starts from the images, noised to the time that `strength` gives.
                Inpainting: pixels outside `known` are filled in. Image to video: the first frames.
            last_images: the last frames of the videos, like `images`.
            strength: the fraction of the steps to take, in (0, 1], rounded up to whole steps. At 1
                only the `known` part of `images` remains.
            known: True at pixels of `images` to keep, `[batch height width]`. A latent is kept if
                all its pixels are known.
            noise: initial latents of unit variance that replace those drawn from the seeds, `[batch
                rows columns latent_channels]`. Those of videos have a time axis before the rows.

        Raises:
            ValueError: an argument has another number, shape, type or range than described here;
                the size does not divide into the network's patches; negative prompts or their
                scale have no effect; or the target is singular at a time of the grid.
        """
        pictures = dict(images=images, last_images=last_images, known=known)
        pictures = {name: _as_array(name, each) for name, each in pictures.items()}
        images, last_images, known = pictures.values()
        batch = self._checked_count(prompts, negative_prompts, seeds=seeds, **pictures)
        size, frames = self._checked_size(size, images, known), self._checked_frames(frames)
        self._check_given_frames(frames, strength, **pictures)
        shape, edits = self._latent_shape(size, frames), images is not None and frames is None
        times = self._times(num_steps, shape, strength if edits else None)
        keys = self._keys_of(seeds, batch)
        if edits and noise is not None:  # fewer steps start from less noise
            noise = self.process.sigma(times[0]) * noise
        noise = self._start(noise, keys, times[0], shape)
        # The encoders run last, so that a wrong argument does not wait for them.
        guidance = size, guidance_scale, negative_scale
        conditions = self._conditions(prompts, negative_prompts, *guidance)
        given = self._encoded_images(frames, **pictures)
        return self._denoise(self.variables["network"], keys, noise, *conditions, times, *given)

    def networks(self) -> dict[str, tuple[nn.Module, PyTree]]:
        """Return the networks that `save` writes, with their variables, by their folders' names."""
        network, variables = self.network, self.variables["network"]
        if isinstance(network, Experts):
            pair = dict(transformer=(network.high, variables["high"]))
            pair["transformer_2"] = network.low, variables["low"]
        else:
            pair = dict(transformer=(network, variables))
        return pair | dict(vae=(self.autoencoder, self.variables["autoencoder"]))

    def _checked_count(
        self, prompts: Sequence[Any], negative_prompts: Sequence[Any] | None, **given: Any
    ) -> int:
        """Return the number of pictures.

        Raises:
            ValueError: an argument has another number, there are no prompts, or prompts are no list
                of texts, or of labels, as the system takes them.
        """
        conditions = dict(prompts=prompts, negative_prompts=negative_prompts)
        for name, each in conditions.items():
            if not isinstance(self.empty, int):
                check_texts(name, [] if each is None else each)
            elif each is not None:
                check_labels(name, each, getattr(self.network, "null_label", self.empty) + 1)
        for name, each in (conditions | given).items():
            if each is not None and not hasattr(each, "__len__"):
                raise ValueError(f"{name} is {each!r}; expected a list, one for each picture")
            if each is not None and len(each) != len(prompts):
                raise ValueError(
                    f"{len(prompts)} prompts and {len(each)} {name}: give one for each picture"
                )
        if not len(prompts):
            raise ValueError("prompts is empty; give a prompt or a label for each picture")
        return len(prompts)

    def _keys_of(self, seeds: Sequence[int] | None, count: int) -> Key[Array, " batch"]:
        """Return a key for each sample, of seeds 0, 1, … if there are none."""
        return self._placed(_keys(range(count) if seeds is None else seeds))

    def _encoded_images(
        self,
        frames: int | None,
        images: np.ndarray | None,
        last_images: np.ndarray | None,
        known: np.ndarray | None,
    ) -> tuple[Array | None, np.ndarray | Array | None, PyTree]:
        """Return pictures' latents, which of them are known, and a video's frames, or None each."""
        if images is None:
            return None, None, None
        variables = self.variables["autoencoder"]
        images, last_images = self._placed((images, last_images))
        if frames is not None:
            return None, None, self.given_frames.encode(variables, images, last_images, frames)
        latents = self._encode(variables, images)
        known = None if known is None else self._placed(self._known_latents(known))
        return latents, known, None

    def _start(
        self, noise: np.ndarray | Array | None, keys: Array, time: Array, shape: tuple[int, ...]
    ) -> np.ndarray | Array:
        """Return the given noise, or noise drawn from the keys."""
        if noise is None:
            return self._placed(self._draw(keys, time, shape))
        shape = (len(keys), *shape)
        if noise.shape != shape:
            raise ValueError(f"noise has shape {noise.shape}; these samples start from {shape}")
        return self._placed(noise)

    def _known_latents(self, known: np.ndarray) -> np.ndarray:
        """Return whether all pixels of each latent are known, `[batch rows columns 1]`."""
        batch, height, width = known.shape
        side = self.autoencoder.factor
        known = known.reshape(batch, height // side, side, width // side, side)
        return known.all((2, 4))[..., None]

    def _denoised(
        self, variables, keys, noise, conditioning, negative, scale, times, latents, known, given
    ) -> Float[Array, "batch *places channels"]:
        """Sample latents, without guidance if there is no negative condition."""

        def apply(x, t, conditioning):
            (condition, named), given = conditioning
            if given is not None:
                x, t, tokens = self.given_frames.inputs(x, t, given)
                named = named | tokens
            return self.network.apply(variables, x, t, condition, **named)

        learned = self.network.out_channels == 2 * self.channels
        denoiser = diffusion.predict(apply, self.process, self.target, learned_variance=learned)
        if negative is None:
            guided = lambda x_t, t: denoiser(x_t, t, (conditioning, given))
        else:
            both = (conditioning, given), (negative, given)
            guided = diffusion.guide(denoiser, *both, self._scale_of_time(scale))
        if known is not None:
            guided = diffusion.inpaint(guided, self.process, known, latents)
        if latents is not None:
            noise = self.process.alpha(times[0]) * latents + noise
        sampled = self.sampler(guided, self.process, noise, times, keys=keys)
        return sampled if given is None else self.given_frames.finish(sampled, given)

    def _scale_of_time(self, scale: Float[Array, " *pair"]) -> Float[Array, ""] | Callable:
        """Return the scale, or for `Experts` the function of time that has its two scales."""
        if not scale.ndim:
            return scale
        time = lambda t: self.process.preconditioning.network_time(self.process, t)
        return lambda t: jnp.where(self.network.is_high(time(t)), *scale)

    def _noise_of(
        self, keys, time, shape: tuple[int, ...]
    ) -> Float[Array, "batch *places channels"]:
        return self.process.prior(keys, shape, time)

    def _encoded(self, variables, images) -> Float[Array, "batch rows columns channels"]:
        latents = self.autoencoder.apply(variables, to_float(images), method="encode")
        latents = latents[0] if isinstance(latents, tuple) else latents
        return (latents - self.mean) / self.deviation

    def _decoded(
        self, variables, latents, keys=None, time=0.0, noise=0.0
    ) -> UInt8[Array, "batch *frames height width 3"]:
        """Decode latents; with keys, at a time of the decoder and after adding noise."""
        latents, method = latents * self.deviation + self.mean, "decode"
        if keys is not None:
            shape = latents.shape[1:]
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, DECODING), shape)
            latents = (1 - noise) * latents + noise * jax.vmap(draw)(keys)
            method = lambda module, chunk: module.decode(chunk, jnp.full(len(chunk), time))
        return decode_chunked(self.autoencoder, variables, latents, method=method, convert=to_uint8)

    def _checked_level(self, time: float, noise: float | None) -> tuple[float, ...]:
        """Return the time and the share of noise of decoding; nothing for other decoders."""
        noise = time if noise is None else noise
        if not (0 <= time <= 1 and 0 <= noise <= 1):
            raise ValueError(f"decode_time={time} and decode_noise={noise}; expected 0 to 1")
        if getattr(self.autoencoder, "takes_time", False):
            return time, noise
        if time or noise:
            raise ValueError(
                "the decoder of this system takes no time: leave out decode_time and decode_noise"
            )
        return ()

    def _placed(self, tree: PyTree) -> PyTree:
        return tree if self.sharding is None else jax.device_put(tree, self.sharding)

    def _conditions(
        self,
        prompts: Sequence[Any],
        negative_prompts: Sequence[Any] | None,
        size: tuple[int, ...],
        guidance_scale: float | tuple[float, float] | None,
        negative_scale: float,
    ) -> tuple[PyTree, PyTree, Float[Array, " *pair"]]:
        """Return the network's condition, that of negative prompts or None, and the scale."""
        batch, named = len(prompts), {}
        scale = self._checked_scale(guidance_scale)
        if self.takes_guidance:
            named["guidance"] = jnp.full(batch, scale, jnp.float32)
        if self.takes_size:
            named["size"] = jnp.tile(jnp.array(size, jnp.float32), (batch, 1))
        name = "guidance_scale"
        if self.distilled:
            name, scale = "negative_scale", negative_scale
            if not math.isfinite(scale):
                raise ValueError(f"{name}={scale} must be a finite number")
        elif negative_scale != 1:
            raise ValueError(
                f"negative_scale={negative_scale} is for networks with distilled guidance, such "
                "as FLUX.1; this network is guided by guidance_scale: leave negative_scale out"
            )
        negative = None
        if np.max(scale) > 1:
            negatives = [self.empty] * batch if negative_prompts is None else negative_prompts
            negative = self._placed((self.condition(negatives), named))
        elif negative_prompts is not None:
            raise ValueError(
                f"negative_prompts have no effect where {name}={scale}: raise {name} above 1, or "
                "leave negative_prompts out"
            )
        return self._placed((self.condition(prompts), named)), negative, jnp.float32(scale)

    def _checked_scale(
        self, guidance_scale: float | tuple[float, float] | None
    ) -> float | Float[np.ndarray, "2"]:
        """Return the guidance scale; for `Experts` the two scales, each at least 1."""
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        experts = isinstance(self.network, Experts)
        shapes, expected = [()], "a finite number"
        if experts:
            shapes, expected = [(), (2,)], f"{expected}, or a pair for high and low noise"
        if np.shape(scale) not in shapes or not np.all(np.isfinite(scale)):
            raise ValueError(f"guidance_scale={scale} does not fit this system: give {expected}")
        return np.broadcast_to(np.maximum(scale, 1), 2) if experts else scale

    def _times(
        self, num_steps: int | None, shape: tuple[int, ...], strength: float | None
    ) -> Float[Array, " times"]:
        """Return the times of the steps; an image to start from takes only the last steps."""
        num_steps = self.num_steps if num_steps is None else num_steps
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps}; a picture takes at least 1")
        patch = self.network.patch_size
        of_patch = math.prod(patch) if isinstance(patch, tuple) else patch**2
        times = self.grid(num_steps, math.prod(shape[:-1]) // of_patch)
        if strength is not None:
            times = times[-1 - last_steps(num_steps, strength) :]
        diffusion.check_target(self.process, self.target, times[:-1])
        return times

    def _checked_frames(self, frames: int | None) -> int | None:
        """Return the number of a video's frames, None for pictures."""
        if self.frames is None:
            if frames is not None:
                raise ValueError(f"frames={frames}, and this system makes pictures: leave it out")
            return None
        frames = self.frames if frames is None else frames
        factor = self.autoencoder.temporal_factor
        if frames < 1 or (frames - 1) % factor:
            raise ValueError(f"frames={frames} is not 1 + n·{factor}, as the autoencoder decodes")
        return frames

    def _latent_shape(self, size: tuple[int, int], frames: int | None) -> tuple[int, ...]:
        """Return the shape of a sample's latents, `[*frames rows columns channels]`."""
        rows, columns = (side // self.autoencoder.factor for side in size)
        if frames is None:
            return rows, columns, self.channels
        return 1 + (frames - 1) // self.autoencoder.temporal_factor, rows, columns, self.channels

    def _check_given_frames(
        self,
        frames: int | None,
        strength: float,
        images: np.ndarray | None,
        last_images: np.ndarray | None,
        known: np.ndarray | None,
    ) -> None:
        """Check that a system of videos gets the frames that it takes."""
        given = self.given_frames
        if last_images is not None and (given is None or not given.takes_last):
            raise ValueError("this system takes no last frame: leave last_images out")
        if self.frames is None:
            if images is None and strength != 1:
                raise ValueError(
                    f"strength={strength} is for images, and there are none: give images, or leave "
                    "strength out"
                )
            return
        if given is None and images is not None:
            raise ValueError("this system makes videos from prompts alone: leave images out")
        if given is not None and given.required and images is None:
            raise ValueError("this system makes videos from their first frames: give images")
        if given is not None and given.needs_last and last_images is None:
            raise ValueError("this system makes videos between two frames: give last_images too")
        if strength != 1 or known is not None:
            raise ValueError("strength and known are for pictures: leave them out for videos")
        if last_images is not None:
            if last_images.shape != images.shape or last_images.dtype != images.dtype:
                raise ValueError(
                    f"last_images are {last_images.dtype} of shape {last_images.shape}; give "
                    f"{images.dtype} of shape {images.shape}, as images"
                )
            if frames == 1:
                raise ValueError("frames=1 has no last frame: ask for more frames")

    def _checked_size(
        self, size: tuple[int, int] | None, images: np.ndarray | None, known: np.ndarray | None
    ) -> tuple[int, int]:
        if images is not None:
            if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
                raise ValueError(
                    f"images are {images.dtype} of shape {images.shape}; give bytes, "
                    "[batch height width 3]: genjax.data.to_uint8 makes bytes of numbers in [−1, 1]"
                )
            if size is not None and tuple(size) != images.shape[1:3]:
                raise ValueError(f"size={size} and images of {images.shape[1:3]}: leave size out")
            size = images.shape[1:3]
        if known is not None:
            check_known(known)
        if known is not None and (images is None or known.shape != images.shape[:3]):
            given = (
                "there are none" if images is None else f"{known.shape} is not {images.shape[:3]}"
            )
            raise ValueError(
                f"known says what to keep of images, and {given}: give images too, of that size"
            )
        if size is not None and np.shape(size) != (2,):
            raise ValueError(f"size is {size!r}; expected (height, width) in pixels")
        height, width = size or self.size
        side = self.autoencoder.factor * self.network.divisor
        if height < 1 or width < 1 or height % side or width % side:
            raise ValueError(
                f"pictures of {height}×{width} pixels do not divide into patches of {side}: "
                f"take multiples of {side}"
            )
        return height, width


def check_texts(name: str, texts: Sequence[Any]) -> None:
    """Raise ValueError unless an argument is a list of strings."""
    if isinstance(texts, str):
        raise ValueError(
            f"{name} is the string {texts!r}; expected a list of strings, one for each sample"
        )
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(
            f"{name} has {wrong[0]!r}; expected a list of strings, one for each sample"
        )


def check_labels(name: str, labels: Any, count: int) -> None:
    """Raise ValueError unless an argument is a list of whole numbers from 0 to `count` − 1.

    An embedding takes the last row in place of one that it does not have, and says nothing.
    """
    given = np.asarray(labels)
    whole = given.ndim == 1 and len(given) and np.issubdtype(given.dtype, np.integer)
    if not whole or given.min() < 0 or given.max() >= count:
        raise ValueError(
            f"{name}={given.tolist()!r} must be a list of whole numbers from 0 to {count - 1}"
        )


def _as_array(name: str, pictures: np.ndarray | Sequence[Any] | None) -> np.ndarray | None:
    """Return pictures as one array; raise ValueError if those of a list differ in size."""
    if pictures is None:
        return None
    if isinstance(pictures, Sequence) and len(shapes := set(map(np.shape, pictures))) > 1:
        raise ValueError(
            f"{name} have the shapes {sorted(shapes)}: give pictures of one size and mode"
        )
    return np.asarray(pictures)


def _keys(seeds: Sequence[int]) -> Key[Array, " batch"]:
    """Return a key for each seed, equal to `jax.random.key(seed)`."""
    seeds = [operator.index(seed) for seed in seeds]
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise ValueError(f"seeds are from 0 to 2³² − 1; got {wrong[0]}")
    return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
