"""Sound and video rolled out: windows of a long clip, each of which continues the one before."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.inputs.played_clips import PlayedClips
from experiments.tasks.joint_diffusion import (
    Guidance,
    JointDiffusion,
    check_first,
    check_given,
    check_scales,
)
from genjax import diffusion
from genjax.diffusion.joint import known_rows


@dataclass(frozen=True)
class JointRollOut(JointDiffusion):
    """Sound and video of any length: a window's first rows are the last ones of the window before.

    `config.loss.known_part` says how many rows these are, and trains to continue them
    (`diffusion.joint_loss`). `config.sampling.frames` is the number of frames of a sample.
    `config.sampling.given` names a modality that is kept from the condition's clips, as in
    `JointDiffusion`, or has the numbers of their first frames, which are given with their sound.
    """

    config_fields = dict(sampling=dict(frames=int))

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config.

        Raises:
            ValueError: as of `JointDiffusion`, the condition is not `PlayedClips`, or the loss has
                no known part, or one that ends within a patch.
        """
        fields = super().fields(config)
        if not isinstance(fields["condition"], PlayedClips):
            raise ValueError(
                f"config.condition is {type(fields['condition']).__name__}; a roll-out takes its "
                "windows from long clips: set config.condition.name=PlayedClips"
            )
        for name, (rows, *_) in fields["space"].shape.items():
            known = int(known_rows(config.loss.get("known_part", 0.0), rows).sum())
            check_known(name, known, fields["network"])
        return fields

    @property
    def known_part(self) -> float:
        """The part of a window's rows that are those of the window before."""
        return self.objective.loss.keywords["known_part"]

    def known(self, rows: int) -> int:
        return int(known_rows(self.known_part, rows).sum())

    def check(self, sampling: Any) -> None:
        """Raise ValueError if samples of these frames, with what is given, cannot be made."""
        window = self.condition.window
        new, longest = window - self.known(window), self.condition.frames
        if not window <= sampling.frames <= longest or (sampling.frames - window) % new:
            raise ValueError(
                f"config.sampling.frames is {sampling.frames}; take {window}, {window + new}, … "
                f"frames, {new} for each window, and at most config.condition.frames={longest}"
            )
        check_scales(sampling, self.process)
        check_first(sampling, self.process)
        if self._starts_known(sampling):
            return
        if any(isinstance(each, int) for each in sampling.given):
            raise ValueError(
                f"config.sampling.given is {list(sampling.given)}; a roll-out continues the first "
                f"{self.known(window)} frames of a clip: give all of 0 to {self.known(window) - 1}"
            )
        check_given(sampling.given, self.process)

    def _starts_known(self, sampling: Any) -> bool:
        """Return whether the first frames are given."""
        return tuple(sampling.given) == tuple(range(self.known(self.condition.window)))

    def _inputs(
        self, sampling: Any
    ) -> tuple[Guidance, dict[str, Float[Array, "windows times rows"]]]:
        scales, grid = super()._inputs(sampling)
        rows = {name: shape[0] for name, shape in self.space.shape.items()}
        options = dict(start_known=self._starts_known(sampling))
        sizes = rows, self.known_part, self._num_windows(sampling)
        return scales, diffusion.windowed_grid(self.process, grid, *sizes, **options)

    def _grid_of_clip(self, sampling: Any) -> dict[str, Float[Array, "times rows"]]:
        """Return the grid of the last window, whose first rows are known."""
        return jax.tree.map(lambda grid: grid[-1], super()._grid_of_clip(sampling))

    def _num_windows(self, sampling: Any) -> int:
        frames = self.condition.window
        return 1 + (sampling.frames - frames) // (frames - self.known(frames))

    def solve(
        self,
        params: PyTree,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        guidance: Guidance,
        time_grid: dict[str, Float[Array, "windows times rows"]],
        frozen: PyTree = None,
        *,
        trajectory: bool = False,
    ) -> tuple[PyTree, PyTree]:
        """Return what sampling starts from, and what the sampler makes of it, window by window.

        The network appears once in the compiled program for all windows.
        """
        keys, frames = diffusion.sample_keys(key, indices), self.condition.window
        windows, new = len(time_grid["video"]), frames - self.known(frames)

        def body(before: PyTree, window: tuple) -> tuple[PyTree, tuple[PyTree, PyTree]]:
            number, grid = window
            inputs = labels, frozen, number * new
            condition, clips = self.condition.of_labels(*inputs), self.condition.clips(*inputs)
            clips = self._continued(before, self.space.encode(clips, frozen), number)
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            inputs = params, own, condition, clips, guidance, grid, frozen
            start, states = self._sampled(*inputs, trajectory)
            samples = jax.tree.map(lambda a: a[-1], states) if trajectory else states
            return samples, (start, states)

        shapes = {name: (len(labels), *shape) for name, shape in self.space.shape.items()}
        nothing = {name: jnp.zeros(shape) for name, shape in shapes.items()}
        _, (start, states) = jax.lax.scan(body, nothing, (jnp.arange(windows), time_grid))
        return self._joined(start, axis=1), self._joined(states, axis=1 + trajectory)

    def _continued(self, before: PyTree, clips: PyTree, number: Int[Array, ""]) -> PyTree:
        """Return the clips, whose first rows are the last ones of the window before, if any."""

        def join(before: Array, clip: Array) -> Array:
            count = self.known(clip.shape[1])
            return clip.at[:, :count].set(before[:, clip.shape[1] - count :])

        continued = jax.tree.map(join, before, clips)
        return jax.tree.map(lambda a, b: jnp.where(number > 0, a, b), continued, clips)

    def _joined(self, windows: PyTree, axis: int) -> PyTree:
        """Return the rows of all windows, without those that are known from the window before."""

        def join(a: Array) -> Array:
            rows = jax.lax.slice_in_dim(a, self.known(a.shape[axis + 1]), None, axis=axis + 1)
            first = jax.lax.slice_in_dim(a[0], 0, self.known(a.shape[axis + 1]), axis=axis)
            rows = jnp.moveaxis(rows, 0, axis)
            rows = rows.reshape(*rows.shape[:axis], -1, *rows.shape[axis + 2 :])
            return jnp.concatenate([first, rows], axis)

        return jax.tree.map(join, windows)

    def functions(self, state: Any, sampling: Any) -> dict[str, Any]:
        """Return how many frames a sample may continue, `known_frames`."""
        return {"known_frames": self.known(self.condition.window)}

    def num_evaluations(self, sampling: Any) -> int:
        return self._num_windows(sampling) * super().num_evaluations(sampling)

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return super().describe_sampling(sampling) | {"frames": sampling.frames}


def check_known(modality: str, known: int, network: nn.Module) -> None:
    """Raise ValueError if the known rows of a modality end within a patch, which has one time."""
    patch = getattr(network, f"{modality}_patch", 1)
    length = patch if isinstance(patch, int) else patch[0]
    if known % length:
        raise ValueError(
            f"config.loss.known_part makes {known} rows of {modality} known, and a patch has "
            f"{length} rows of one time: choose a part of whole patches"
        )
