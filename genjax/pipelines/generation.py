"""From prompts or classes to pictures, by a diffusion network in the latent space of an autoencoder."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, PyTree, UInt8

from genjax import diffusion
from genjax.data import to_float, to_uint8


class Pipeline:
    """`pipeline(prompts, seeds=…)`: pictures, each a function of its prompt and its seed, and not of its batch or its devices.

    One program denoises, one decodes, and there is one for each text encoder; a second call with as many prompts, steps and
    pixels compiles nothing, whatever its guidance, negative prompts and seeds are.

    Args:
        network: `apply(variables, x, t, condition, …)`, on latents.
        autoencoder: with `factor`, `latent_mean`, `latent_deviation`, `encode` and `decode`.
        variables: of the two, as `network` and `autoencoder`.
        condition: from prompts, or class labels, to what the network is told.
        empty: the prompt, or label, of guidance without a negative one.
        process, target, sampler: of `genjax.diffusion`.
        grid: `(num_steps, tokens) -> times`, tokens the number of image tokens.
        size: (height, width) of pictures by default, in pixels.
        num_steps: by default.
        guidance_scale: by default, 1 is none.
        sharding: of batches, on a mesh; the variables lie where they were loaded to.
    """

    def __init__(
        self,
        network: nn.Module,
        autoencoder: nn.Module,
        variables: dict[str, PyTree],
        *,
        condition: Callable[[Sequence[Any]], PyTree],
        empty: str | int,
        process: diffusion.Process,
        target: Callable,
        sampler: Callable,
        grid: Callable[[int, int], Float[Array, " times"]],
        size: tuple[int, int],
        num_steps: int,
        guidance_scale: float,
        sharding: Sharding | None = None,
    ):
        self.network, self.autoencoder, self.variables = network, autoencoder, variables
        self.condition, self.empty = condition, empty
        self.process, self.grid, self.size = process, grid, size
        self.num_steps, self.guidance_scale, self.sharding = num_steps, guidance_scale, sharding
        self.takes_guidance = getattr(network, "takes_guidance", False)
        self.takes_size = getattr(network, "size_conditioning", False)
        self.channels = autoencoder.latent_channels
        learned_variance = network.out_channels == 2 * self.channels
        mean, deviation = (
            np.asarray(moment, np.float32)
            for moment in (autoencoder.latent_mean, autoencoder.latent_deviation)
        )

        def denoise(variables, keys, noise, conditioning, negative, scale, times, latents, known):
            def apply(x, t, told):
                condition, named = told
                return network.apply(variables, x, t, condition, **named)

            denoiser = diffusion.predict(apply, process, target, learned_variance=learned_variance)
            if negative is None:
                guided = lambda x_t, t: denoiser(x_t, t, conditioning)
            else:
                guided = diffusion.guide(denoiser, conditioning, negative, scale)
            if known is not None:
                guided = diffusion.inpaint(guided, process, known, latents)
            if latents is not None:
                noise = process.alpha(times[0]) * latents + noise
            return sampler(guided, process, noise, times, keys=keys)

        def draw(keys, time, height, width):
            return process.prior(keys, (height, width, self.channels), time)

        def encode(variables, images):
            latents = autoencoder.apply(variables, to_float(images), method="encode")
            latents = latents[0] if isinstance(latents, tuple) else latents
            return (latents - mean) / deviation

        def decode(variables, latents):
            return to_uint8(autoencoder.apply(variables, latents * deviation + mean, method="decode"))

        self._denoise, self._encode, self._decode = jax.jit(denoise), jax.jit(encode), jax.jit(decode)
        self._draw = jax.jit(draw, static_argnums=(2, 3))

    def __call__(
        self,
        prompts: Sequence[Any],
        *,
        seeds: Sequence[int] | None = None,
        negative_prompts: Sequence[Any] | None = None,
        size: tuple[int, int] | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_scale: float = 1.0,
        images: UInt8[np.ndarray, "batch height width 3"] | None = None,
        strength: float = 1.0,
        known: Bool[np.ndarray, "batch height width"] | None = None,
        noise: Float[np.ndarray, "batch rows columns latent_channels"] | None = None,
    ) -> UInt8[np.ndarray, "batch height width 3"]:
        """
        Args:
            prompts: texts, or class labels, one for each picture.
            seeds: one for each picture; 0, 1, … if None.
            negative_prompts: to be guided away from, one for each picture.
            size: height and width in pixels.
            guidance_scale: how far to guide; 1 is plain conditional sampling. A network that is told its scale (FLUX.1 dev)
                is told this one, and is guided away from negative prompts by `negative_scale`.
            images: to begin from, noised to the time that `strength` says (image to image), or to fill in where not `known`.
            strength: the part of the steps to take, in (0, 1]: 1 leaves nothing of `images` but what is known.
            known: True at pixels of `images` to keep; a latent is kept if all its pixels are.
            noise: to start from, in place of what is drawn from the seeds; latents.

        Raises:
            ValueError: numbers of prompts, seeds and images that differ; a size that does not divide into latents' patches.
        """
        batch, height, width, num_steps = self._checked(
            prompts, seeds, negative_prompts, size, num_steps, images, strength, known
        )
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        rows, columns = height // self.autoencoder.factor, width // self.autoencoder.factor
        times = self.grid(num_steps, rows * columns // self.network.patch_size**2)
        if images is not None:
            times = times[-1 - max(1, round(strength * num_steps)) :]

        named = {}
        if self.takes_guidance:
            named["guidance"] = jnp.full(batch, scale, jnp.float32)
            scale = negative_scale
        if self.takes_size:
            named["size"] = jnp.tile(jnp.array([height, width], jnp.float32), (batch, 1))
        negative = None
        if scale != 1:
            negatives = [self.empty] * batch if negative_prompts is None else negative_prompts
            negative = self._placed((self.condition(negatives), named))
        conditioning = self._placed((self.condition(prompts), named))
        keys = self._placed(
            jax.vmap(jax.random.key)(jnp.arange(batch) if seeds is None else jnp.array(seeds))
        )
        if noise is None:
            noise = self._draw(keys, times[0], rows, columns)
        latents = None
        if images is not None:
            latents = self._encode(self.variables["autoencoder"], self._placed(images))
        if known is not None:
            factor = self.autoencoder.factor
            known = known.reshape(batch, rows, factor, columns, factor).all((2, 4))[..., None]
        latents = self._denoise(
            self.variables["network"],
            keys,
            self._placed(noise),
            conditioning,
            negative,
            jnp.float32(scale),
            times,
            latents,
            self._placed(known),
        )
        return np.asarray(self._decode(self.variables["autoencoder"], latents))

    def _placed(self, tree: PyTree) -> PyTree:
        return tree if self.sharding is None else jax.device_put(tree, self.sharding)

    def _checked(
        self, prompts, seeds, negative_prompts, size, num_steps, images, strength, known
    ) -> tuple[int, int, int, int]:
        if isinstance(prompts, str):
            raise ValueError(
                f"prompts is the string {prompts!r}; expected a list of them, one for each picture"
            )
        batch = len(prompts)
        given = dict(seeds=seeds, negative_prompts=negative_prompts, images=images, known=known)
        for name, each in given.items():
            if each is not None and len(each) != batch:
                raise ValueError(f"{batch} prompts and {len(each)} {name}: give one for each picture")
        if known is not None and images is None:
            raise ValueError("known says what to keep of images, and there are none: give images too")
        if not 0 < strength <= 1:
            raise ValueError(f"strength is the part of the steps to take, in (0, 1]; got {strength}")
        height, width = images.shape[1:3] if images is not None else size or self.size
        side = self.autoencoder.factor * self.network.patch_size
        if height % side or width % side:
            raise ValueError(
                f"pictures of {height}×{width} pixels do not divide into patches of {side}: take multiples of {side}"
            )
        return batch, height, width, num_steps or self.num_steps
