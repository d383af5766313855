"""Video frame by frame: a causal network with noise in each frame, rolled out to any length."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.tasks.diffusion import Diffusion, check_no_interval
from experiments.tasks.frame_completion import check_clips, check_patches
from genjax import diffusion
from genjax.diffusion.rollout import Rolled
from genjax.diffusion.targets import network_inputs


class Guidance(NamedTuple):
    """How a clip is rolled out.

    Attributes:
        guidance_scale: on the condition.
        history_scale: on the frames before; None leaves this guidance out.
        given: the first frames of the condition's clips, with which samples start.
        frames: those of a sample, as many as the array has.
    """

    guidance_scale: Float[Array, ""]
    history_scale: Float[Array, ""] | None
    given: Int[Array, " given"]
    frames: Int[Array, " frames"]


@dataclass(frozen=True)
class CausalVideo(Diffusion):
    """Diffusion forcing (Chen et al. 2024): noise in each frame, and samples frame by frame.

    Training is that of `Diffusion` with `config.loss.time_axes = 2`. `config.sampling` also has the
    number of `frames` of a sample, the numbers of those `given` by the condition's clips, the first
    ones, and `history_scale` (`diffusion.guide_roll_out`). Frames are those of the network's space.
    """

    optional_sampling = ()
    config_fields = dict(sampling=dict(frames=int, given=tuple, history_scale=float | None))

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config.

        Raises:
            ValueError: as of `Diffusion`; the network is not causal, the loss has one time for a
                clip, the condition has no clips, a patch has several frames, no frame is left to
                sample, or guidance has an interval.
        """
        fields = super().fields(config)
        check_clips(fields["condition"])
        check_patches(fields["network"])
        if not getattr(fields["network"], "causal", False):
            raise ValueError(
                f"config.model names {config.model.name}, which is not causal; a roll-out takes "
                "VideoDiT with config.model.causal=True"
            )
        if config.loss.get("time_axes") != 2:
            raise ValueError(
                "a roll-out needs noise for each frame: set config.loss.time_axes to 2"
            )
        check_given(config.sampling, fields["space"].shape[0])
        check_no_interval(config.sampling, cls.__name__)
        return fields

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        scale, *others = super().abstract_sampling_inputs(sampling, batch, frozen)
        check_given(sampling, self.space.shape[0])
        history_scale = sampling.history_scale
        guidance = Guidance(
            guidance_scale=scale,
            history_scale=None if history_scale is None else jnp.float32(history_scale),
            given=jnp.arange(len(sampling.given)),
            frames=jnp.arange(sampling.frames),
        )
        return guidance, *others

    def solve(
        self,
        params: PyTree,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        guidance: Guidance,
        time_grid: Float[Array, " times"],
        frozen: PyTree = None,
        *,
        trajectory: bool = False,
    ) -> tuple[Array, Array]:
        """Return noise, and what the roll-out makes of it.

        Args:
            trajectory: also return earlier states, which have fewer frames and else noise.
        """
        keys = diffusion.sample_keys(key, indices)
        shape = len(guidance.frames), *self.space.shape[1:]
        noise = self.process.prior(keys, shape, time_grid[0])
        start, given = len(guidance.given), None
        if start:
            clips = self.space.encode(self.condition.clips(labels, frozen), frozen)
            given = clips[:, :start]
        rolled, memory = self._rolled(params, labels, guidance, shape, frozen)
        options = dict(given=given, keys=keys)
        clips = diffusion.roll_out(
            rolled, self.sampler, self.process, noise, time_grid, memory, **options
        )
        if not trajectory:
            return noise, clips
        made = jnp.arange(start, shape[0] + 1)[:, None] > guidance.frames
        return noise, jnp.where(made[:, None, :, None, None, None], clips, noise)

    def _rolled(
        self, params: PyTree, labels: Array, guidance: Guidance, shape: tuple, frozen: PyTree
    ) -> tuple[Rolled, PyTree]:
        """Return the guided network, and its empty cache for clips of this shape."""
        extend = functools.partial(self._apply(params, frozen), method="extend")
        denoiser = self.objective.denoiser(lambda *inputs: extend(*inputs)[0])

        def remember(frames, t, condition, cache):
            inputs = network_inputs(self.process, frames, t)
            return extend(*inputs, condition, cache)[1]

        scales = guidance.guidance_scale, guidance.history_scale
        condition, null = self.condition.of_labels(labels, frozen), self.condition.null(frozen)
        rolled = diffusion.guide_roll_out(
            denoiser, remember, self.process, condition, null, *scales
        )
        parts = 2 if guidance.history_scale is None else 3
        return rolled, self.network.empty_cache(parts * len(labels), *shape[:3])

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often the network is evaluated: each new frame is sampled, then remembered.

        All given frames are remembered at once.
        """
        new = sampling.frames - len(sampling.given)
        return new * (super().num_evaluations(sampling) + 1) + bool(sampling.given)

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        own = {name: sampling[name] for name in ("history_scale", "frames")}
        return super().describe_sampling(sampling) | own | {"given": list(sampling.given)}


def check_given(sampling: Any, frames_of_clip: int) -> None:
    """Raise ValueError if the given frames are not the first ones, or are all frames."""
    given, most = list(sampling.given), min(sampling.frames - 1, frames_of_clip)
    if given != list(range(len(given))) or len(given) > most:
        raise ValueError(
            f"config.sampling.given is {given}; a roll-out of {sampling.frames} frames continues "
            f"the first frames of a clip, 0, 1, … in order, at most {most}"
        )
