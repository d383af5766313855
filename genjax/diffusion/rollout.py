"""Roll-out: a causal network continues a clip, frame by frame, from its own clean frames.

The network is trained with independent noise in each frame (Chen et al. 2024, "Diffusion forcing").
So it knows noisy frames after clean ones. Each frame is sampled given a memory of the frames before
it, such as a cache of keys and values (`VideoDiT.extend`). Then the clean frame is remembered.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from genjax.diffusion.processes import Process
from genjax.diffusion.targets import Prediction


class Rolled(NamedTuple):
    """The two functions of a network that a roll-out calls.

    Attributes:
        denoise: `(x_t, t, memory) -> Prediction` of one frame, `[batch 1 …]`.
        remember: `(frames, noise, memory) -> memory` after these clean frames. The noise is that
            which the frames started from.
    """

    denoise: Callable[..., Prediction]
    remember: Callable[..., PyTree]


def roll_out(
    rolled: Rolled,
    sampler: Callable,
    process: Process,
    noise: Float[Array, "batch frames *shape"],
    times: Float[Array, " times"],
    memory: PyTree,
    *,
    given: Float[Array, "batch given *shape"] | None = None,
    keys: Key[Array, " batch"] | None = None,
) -> Float[Array, "batch frames *shape"]:
    """Sample a clip frame by frame, each given all frames before it.

    The network appears once in the compiled program for all frames.

    Args:
        sampler: of `genjax.diffusion.samplers`, with its options bound.
        noise: of all frames of the clip, those of `given` too.
        times: the grid of each frame.
        memory: before the first frame.
        given: clean frames with which the clip starts.
        keys: one per sample, for samplers that draw noise.
    """
    start = 0 if given is None else given.shape[1]
    if start:
        memory = rolled.remember(given, noise[:, :start], memory)

    def body(memory, frame):
        index, z = frame
        own = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        denoiser = lambda x_t, t: rolled.denoise(x_t, t, memory)
        x = sampler(denoiser, process, z, times, keys=own)
        return rolled.remember(x, z, memory), x

    one_by_one = jnp.moveaxis(noise[:, start:, None], 1, 0)
    indices = jnp.arange(start, noise.shape[1])
    _, frames = jax.lax.scan(body, memory, (indices, one_by_one))
    frames = jnp.moveaxis(frames, 0, 1)[:, :, 0]
    return frames if given is None else jnp.concatenate([given, frames], axis=1)


def guide_roll_out(
    denoiser: Callable[..., Prediction],
    remember: Callable[..., PyTree],
    process: Process,
    condition: PyTree,
    null: PyTree,
    guidance_scale: float | Float[Array, ""],
    history_scale: float | Float[Array, ""] | None = None,
) -> Rolled:
    """Guide on the condition c and on the history h, the frames before:

        ŷ(c, h) + (s − 1)·(ŷ(c, h) − ŷ(∅, h)) + (w − 1)·(ŷ(c, h) − ŷ(c, ∅))

    The last part is vanilla history guidance (Song et al. 2025, "History-guided video diffusion").
    An absent history is one of pure noise, as in that paper. The two or three parts are one batch,
    so the network is called once, and the memory has the parts one after the other. A learned
    variance is that of ŷ(c, h).

    Args:
        denoiser: `(x_t, t, condition, memory) -> Prediction` of frames.
        remember: `(frames, t, condition, memory) -> memory`, with times `[batch frames]`. Clean
            frames have the first time of the domain, which the network knows. Frames and times are
            not yet `targets.network_inputs`.
        condition, null: leaves `[batch …]`, and what broadcasts against them.
        guidance_scale: s.
        history_scale: w; None leaves its part out.
    """
    scales = [guidance_scale] if history_scale is None else [guidance_scale, history_scale]
    parts = 1 + len(scales)
    repeat = lambda a: jnp.concatenate([a] * parts)
    nulls = jax.tree.map(lambda c, n: jnp.broadcast_to(n, c.shape), condition, null)
    conditions = [condition, nulls, condition][:parts]
    conditions = jax.tree.map(lambda *each: jnp.concatenate(each), *conditions)

    def extrapolate(y):
        full, *without = jnp.split(y, parts)
        return full + sum((s - 1) * (full - y) for s, y in zip(scales, without, strict=True))

    def denoise(x_t, t, memory):
        clean, noise, fraction = denoiser(repeat(x_t), repeat(t), conditions, memory)
        own = None if fraction is None else fraction[: len(x_t)]
        return Prediction(extrapolate(clean), extrapolate(noise), own)

    def remember_parts(frames, noise, memory):
        shown = jnp.concatenate([frames, frames, noise][:parts])
        times = jnp.full((parts, *frames.shape[:2]), process.domain[0])
        times = times.at[2:].set(process.domain[1]).reshape(shown.shape[:2])
        return remember(shown, times, conditions, memory)

    return Rolled(denoise, remember_parts)
