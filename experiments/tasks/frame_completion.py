"""Diffusion of clips of which some frames are given: image to video, first and last frame."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from experiments.inputs.clips import CaptionedClips
from experiments.tasks.diffusion import Diffusion, check_waits
from genjax import diffusion


@dataclass(frozen=True)
class FrameCompletion(Diffusion):
    """A network that completes clips from given frames, which sampling keeps.

    A given frame is clean and has the first time of the domain. `given_frames_loss` trains so, and
    samplers take a grid with a column for each frame. `config.sampling.given` has the numbers of
    the frames to give, in the space of the network. They are those of the condition's clips.
    """

    config_fields = dict(sampling=dict(given=tuple))

    @classmethod
    def from_config(cls, config: Any) -> "FrameCompletion":
        """Return the task of a config; raise ValueError as of `fields` and `check_waits`."""
        task = super().from_config(config)
        _, times = task.abstract_sampling_inputs(config.sampling, {}, ())
        check_waits(task.sampler, task.process, times, task.space.shape)
        return task

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config.

        Raises:
            ValueError: as of `Diffusion`; the condition has no clips; a patch has several frames;
                or there are no such frames.
        """
        fields = super().fields(config)
        check_clips(fields["condition"])
        check_patches(fields["network"])
        diffusion.given_mask(config.sampling.given, fields["space"].shape[0])
        return fields

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        scale, times, *_ = super().abstract_sampling_inputs(sampling, batch, frozen)
        given = diffusion.given_mask(sampling.given, self.space.shape[0])
        return scale, diffusion.given_grid(self.process, times, given), *frozen

    def _start(
        self,
        keys: Key[Array, " batch"],
        labels: Array,
        time_grid: Float[Array, "times frames"],
        frozen: PyTree,
    ) -> Float[Array, " batch *shape"]:
        """Return noise, with clean frames where a frame's time never changes."""
        noise = super()._start(keys, labels, time_grid, frozen)
        clips = self.space.encode(self.condition.clips(labels, frozen), frozen)
        given = time_grid[0] == time_grid[-1]
        return jnp.where(given[:, None, None, None], clips, noise)

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return super().describe_sampling(sampling) | {"given": list(sampling.given)}


def check_clips(condition: Any) -> None:
    """Raise ValueError if a condition has no clips to take frames of."""
    if not isinstance(condition, CaptionedClips):
        raise ValueError(
            f"config.condition is {type(condition).__name__}, which has no clips to take frames "
            "of: set config.condition.name=CaptionedClips"
        )


def check_patches(network: nn.Module) -> None:
    """Raise ValueError if a patch has several frames, of which the network knows one time."""
    patch = getattr(network, "patch_size", 1)
    if not isinstance(patch, int) and patch[0] != 1:
        raise ValueError(
            f"config.model.patch_size is {patch}, but frames have times of their own: a patch must "
            "have one frame"
        )
