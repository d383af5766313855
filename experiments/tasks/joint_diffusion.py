"""Diffusion of sound and video together: both, video given sound, and sound given video."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.inputs.played_clips import PlayedClips
from experiments.inputs.sound_and_video import SoundingClips, of_features
from experiments.tasks.diffusion import (
    Diffusion,
    check_no_interval,
    check_waits,
    evaluation_times,
    time_grid,
)
from experiments.tasks.joint_objective import JointObjective
from experiments.tasks.shapes import first_output
from genjax import diffusion
from genjax.diffusion.processes import across_batch


class Guidance(NamedTuple):
    """Scales of `diffusion.guide_jointly`, by modality; None leaves the second out."""

    guidance_scale: dict[str, Float[Array, ""]]
    modality_scale: dict[str, Float[Array, ""]] | None


@dataclass(frozen=True)
class JointDiffusion(Diffusion):
    """A network of sound and video, trained with a noise level for each.

    `config.modalities` has the `weight` of each modality's loss, and what else differs between
    modalities: `process`, `target`, `times` or `weighting`. `config.sampling.given` names the
    modality that samples keep from the condition's clips, ("sound",) or ("video",); with () both
    are sampled. With `sampling.first`, these modalities are sampled before the others.
    `guidance_scale` and `modality_scale` are numbers, or one for each modality.
    """

    optional_sampling = ("first",)  # without it all modalities are sampled at once
    config_fields = dict(
        modalities={},
        sampling=dict(
            given=tuple, first=tuple, guidance_scale={}, modality_scale=float | dict | None
        ),
    )

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config.

        Raises:
            ValueError: as of `Diffusion`, the space has other modalities than the objective, the
                condition has no clips with sound, clips with actions are mirrored, clips are cut to
                buckets, or guidance has an interval.
        """
        fields = super().fields(config) | {"objective": JointObjective.from_config(config)}
        named, shape = set(config.modalities), fields["space"].shape
        if named != set(shape):
            raise ValueError(
                f"config.modalities has {', '.join(sorted(named))}, and the shape of config.space "
                f"is {shape}: give each modality of the space its weight"
            )
        if not isinstance(fields["condition"], SoundingClips | PlayedClips):
            raise ValueError(
                f"config.condition is {type(fields['condition']).__name__}, which has no clips "
                "with sound to take a modality of: set config.condition.name=SoundingClips, or "
                "PlayedClips for clips of a game"
            )
        if config.data.flip and getattr(fields["condition"], "num_actions", 0):
            raise ValueError(
                "config.data.flip is True, which would mirror clips and keep their actions: set it "
                "to False"
            )
        if config.data.get("buckets"):
            raise ValueError(
                "config.data.buckets cut clips and not their sound: leave them out, and take clips "
                "of one length"
            )
        check_no_interval(config.sampling, cls.__name__)
        return fields

    @classmethod
    def from_config(cls, config: Any) -> "JointDiffusion":
        """Return the task of a config.

        Raises:
            ValueError: as of `fields`, `Diffusion`, `check` and `check_waits`.
        """
        task = super().from_config(config)
        times = task._grid_of_clip(config.sampling)
        check_waits(task.sampler, task.process, times, task.space.shape)
        return task

    def check(self, sampling: Any) -> None:
        """Raise ValueError if samples of what is given, with these scales, cannot be made."""
        check_given(sampling.given, self.process)
        check_first(sampling, self.process)
        check_scales(sampling, self.process)

    def _zeros(self) -> dict[str, Float[Array, "1 ..."]]:
        return {name: jnp.zeros((1, *shape)) for name, shape in self.space.shape.items()}

    def _check_network(self) -> None:
        """Raise ValueError if the network does not return what the space gives."""
        x, condition = jax.eval_shape(self._zeros), jax.eval_shape(self.condition.example)
        t = {name: jax.ShapeDtypeStruct((1,), jnp.float32) for name in x}
        shapes = {name: a.shape for name, a in x.items()}
        try:
            output = jax.eval_shape(first_output(self.network), jax.random.key(0), x, t, condition)
        except Exception as error:  # whatever a network of the user's own raises
            raise ValueError(
                f"config.model names {type(self.network).__name__}, which cannot be applied to "
                f"{shapes}: {type(error).__name__}: {error}"
            ) from error
        returned = {name: a.shape for name, a in output.items()}
        if returned != shapes:
            raise ValueError(
                f"config.model names {type(self.network).__name__}, which returns {returned}; "
                f"config.space needs {shapes}"
            )

    def _init_network(self, key: Key[Array, ""]) -> PyTree:
        x = self._zeros()
        t = {name: jnp.zeros(1) for name in x}
        return self.network.init(key, x, t, self.condition.example())["params"]

    def _examples(self, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree) -> PyTree:
        x = self.space.encode(of_features(batch), frozen)
        return x | {"video": self._dequantized(x["video"], key)}

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        return *self._inputs(sampling), *frozen

    def _inputs(self, sampling: Any) -> tuple[Guidance, dict[str, Float[Array, " times"]]]:
        self.check(sampling)

        def by_modality(scale):
            number = lambda name: jnp.float32(scale[name] if hasattr(scale, "keys") else scale)
            return None if scale is None else {name: number(name) for name in self.process}

        scales = Guidance(*map(by_modality, (sampling.guidance_scale, sampling.modality_scale)))
        grid = time_grid(self.process, sampling)
        if first := self._first(sampling):
            grid = diffusion.sequential_grid(self.process, grid, first)
        given = [name for name in grid if name in sampling.given]
        return scales, diffusion.given_modalities_grid(self.process, grid, given)

    def _grid_of_clip(self, sampling: Any) -> dict[str, Float[Array, " times *rows"]]:
        """Return the grid by which a clip is sampled; raise ValueError as of `check`."""
        return self._inputs(sampling)[1]

    def solve(
        self,
        params: PyTree,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        guidance: Guidance,
        time_grid: dict[str, Float[Array, " times"]],
        frozen: PyTree = None,
        *,
        trajectory: bool = False,
    ) -> tuple[PyTree, PyTree]:
        """Return what sampling starts from, and what the sampler makes of it.

        A modality whose time never changes starts as that of the labels' clips, and stays it.
        """
        keys = diffusion.sample_keys(key, indices)
        condition = self.condition.of_labels(labels, frozen)
        clips = self.space.encode(self.condition.clips(labels, frozen), frozen)
        inputs = params, keys, condition, clips, guidance, time_grid
        return self._sampled(*inputs, frozen, trajectory)

    def _sampled(
        self,
        params: PyTree,
        keys: Key[Array, " batch"],
        condition: PyTree,
        clips: PyTree,
        guidance: Guidance,
        time_grid: dict[str, Float[Array, " times *rows"]],
        frozen: PyTree,
        trajectory: bool,
    ) -> tuple[PyTree, PyTree]:
        """Return what sampling starts from, and what the sampler makes of it.

        Where a time never changes, samples are those of `clips`.
        """
        process, start = self.process, {}
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), clips)
        noise = diffusion.prior(keys, process, like, {n: t[0] for n, t in time_grid.items()})
        for name, t in time_grid.items():
            waits = across_batch(t[0] == t[-1], noise[name])
            start[name] = jnp.where(waits, clips[name], noise[name])
        # Absent modalities have their own noise, of a key that no sampler folds.
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, jnp.uint32(2**32 - 2))
        absent = diffusion.prior(own, process, like)
        denoiser, null = self.denoiser(params, frozen), self.condition.null(frozen)
        guided = diffusion.guide_jointly(denoiser, process, condition, null, *guidance, absent)
        return start, self.sampler(
            guided, process, start, time_grid, keys=keys, trajectory=trajectory
        )

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        own = {"modality_scale": sampling.modality_scale, "given": list(sampling.given)}
        first = self._first(sampling)
        return super().describe_sampling(sampling) | own | ({"first": list(first)} if first else {})

    def num_evaluations(self, sampling: Any) -> int:
        if not (first := self._first(sampling)):
            return super().num_evaluations(sampling)
        grid = diffusion.sequential_grid(self.process, time_grid(self.process, sampling), first)
        times = jax.eval_shape(lambda: evaluation_times(self.sampler, self.process, grid))
        return len(jax.tree.leaves(times)[0])

    def _first(self, sampling: Any) -> tuple[str, ...]:
        """Return the modalities that are sampled before others; none if all others are given."""
        first = set(getattr(sampling, "first", ())) - set(sampling.given)
        others = self.process.keys() - first - set(sampling.given)
        return tuple(sorted(first)) if others else ()

    def functions(self, state: Any, sampling: Any) -> dict[str, Callable]:
        return {}


def check_given(given: Sequence[str], modalities: Collection[str]) -> None:
    """Raise ValueError if a given modality is not one of them, or all are given."""
    if not set(given) < set(modalities):
        raise ValueError(
            f"config.sampling.given is {list(given)}; name some but not all of "
            f"{', '.join(sorted(modalities))}, or none to sample all"
        )


def check_first(sampling: Any, modalities: Collection[str]) -> None:
    """Raise ValueError if what is sampled first is no modality, or all of them."""
    first = getattr(sampling, "first", ())
    if isinstance(first, str) or (first and not set(first) < set(modalities)):
        raise ValueError(
            f"config.sampling.first is {first!r}; give a tuple that names some but not all of "
            f"{', '.join(sorted(modalities))}, or none to sample all at once"
        )


def check_scales(sampling: Any, modalities: Collection[str]) -> None:
    """Raise ValueError if a scale is given by modality, but not for each."""
    for field in Guidance._fields:
        scale = getattr(sampling, field)
        if hasattr(scale, "keys") and set(scale) != set(modalities):
            raise ValueError(
                f"config.sampling.{field} is given for {', '.join(scale) or 'none'}; give a "
                f"number, or one for each of {', '.join(sorted(modalities))}"
            )
