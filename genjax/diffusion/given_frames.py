"""Clips of which some frames are given: clean frames, with the first time of the domain.

A network with a time for each frame (Chen et al. 2024, "Diffusion forcing") needs no other input to
animate a picture or to continue a clip. The same network serves any frames: the first, the first
and the last, or several.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from genjax.diffusion.losses import Weighting, at_counted_times, simple_loss
from genjax.diffusion.processes import Process
from genjax.diffusion.targets import Target
from genjax.diffusion.times import TimeDistribution, independent


def given_mask(given: Sequence[int], num_frames: int) -> Bool[np.ndarray, " frames"]:
    """Return which frames are given, by their numbers; negative ones count from the last frame.

    Raises:
        ValueError: there is no such frame, or all frames are given.
    """
    mask = np.zeros(num_frames, bool)
    frames = range(-num_frames, num_frames)
    if not all(frame in frames for frame in given):
        raise ValueError(
            f"given frames are {list(given)}; a clip of {num_frames} frames has frames 0 to "
            f"{num_frames - 1}"
        )
    mask[list(given)] = True
    if mask.all():
        raise ValueError(f"all {num_frames} frames are given; leave one out to be generated")
    return mask


def given_grid(
    process: Process, times: Float[Array, " times"], given: Bool[np.ndarray, " frames"]
) -> Float[Array, "times frames"]:
    """Return a sampler's grid in which given frames wait at the clean end."""
    return jnp.where(given, process.clean_end, times[:, None])


def given_frames_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: Float[Array, "batch frames *shape"],
    *conditioning,
    process: Process,
    target: Target,
    times: TimeDistribution,
    variates: Callable = independent,
    weighting: Weighting | None = None,
    given: Sequence[Sequence[int]] = ((0,),),
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Compute `simple_loss` of the frames that are not given, which share a time.

    Args:
        apply: the network, called with times `[batch frames]`.
        given: numbers of the given frames as `given_mask` takes them, in several choices. Each clip
            draws one of the choices.

    Returns:
        The losses and the times of the frames that are not given.

    Raises:
        ValueError: as of `given_mask`.
    """
    choice_key, key = jax.random.split(key)
    choices = jnp.asarray(np.stack([given_mask(each, x.shape[1]) for each in given]))
    mask = choices[jax.random.randint(choice_key, x.shape[:1], 0, len(choices))]

    def distribution(process, u):
        # The clean end may lie outside the domain, where the network has no time.
        return jnp.where(mask, process.domain[0], times(process, u[:, :1]))

    target = at_counted_times(target, mask)
    weighting = weighting and at_counted_times(weighting, mask)
    options = dict(process=process, target=target, variates=variates, weighting=weighting)
    losses, t = simple_loss(
        key, apply, x, *conditioning, times=distribution, time_axes=2, **options
    )
    mean = jnp.mean(losses, axis=1, where=~mask)
    return mean, jnp.max(t, axis=1, where=~mask, initial=process.domain[0])
