"""Diffusion and flow matching."""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import bind, lookup
from experiments.evaluation import Reference, evaluate_images
from experiments.sampling import described, evaluation_times, make_averages, time_grid
from genjax import diffusion
from genjax.data import flip_images, to_float, to_uint8
from genjax.diffusion import losses, processes, samplers, targets, times, weightings
from genjax.models import dit
from genjax.training import Mean, ema, group_norms, make_optimizer, update_average, value_and_gradient
from genjax.training.optimizers import evaluation_params
from genjax.training.pictures import image_grid

TIME_BINS = 8  # equal parts of a process' times, for each of which the loss is logged


@flax.struct.dataclass
class State:
    step: Int[Array, ""]
    params: PyTree
    optimizer_state: PyTree
    averages: dict[str, PyTree]


@dataclass(frozen=True)
class ImageDiffusion:
    """Class-conditional diffusion of images, with classifier-free guidance.

    Batches are dictionaries of `image` (`[batch height width channels]`, bytes, or floats such as latents, as the
    network shall see them) and `label` (`[batch]`).
    """

    network: nn.Module
    image_shape: tuple[int, int, int]
    process: diffusion.Process
    target: Callable
    times: times.Law
    variates: Callable
    weighting: losses.Weighting
    dropout_rate: float
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    averages: tuple[tuple[str, ema.HalfLife | ema.PowerFunction], ...]
    accumulation_steps: int
    flip: bool
    dequantize_levels: int | None
    sampler: Callable

    @classmethod
    def from_config(cls, config: Any) -> "ImageDiffusion":
        """Raises ValueError on names that do not exist, images that do not divide into patches, and a target that is singular
        where the sampler would evaluate the network."""
        image_shape = tuple(config.data.image_shape)
        network = bind(dit, config.model, "model")(num_classes=config.data.num_classes)
        if any(side % network.patch_size for side in image_shape[:2]):
            raise ValueError(
                f"config.data.image_shape {image_shape} does not divide into patches of {network.patch_size} "
                "pixels; change it or config.model.patch_size"
            )
        process, target = bind(processes, config.process, "process")(), bind(targets, config.target, "target")
        sampler = bind(samplers, config.sampling.sampler, "sampling.sampler")
        diffusion.check_target(
            process, target, evaluation_times(sampler, process, time_grid(process, config.sampling))
        )
        law = dict(config.times)
        shift, variates = law.pop("shift"), law.pop("variates")
        optimizer, schedule = make_optimizer(**config.optimizer, num_steps=config.num_steps)
        averages = make_averages(config)
        if config.optimizer.name.startswith("schedule_free") and config.sampling.weights != "params":
            raise ValueError(
                f"config.optimizer.name is {config.optimizer.name!r}, which averages by itself: set "
                "config.sampling.weights to 'params', which are that average"
            )
        return cls(
            network=network,
            image_shape=image_shape,
            process=process,
            target=target,
            times=times.shifted(bind(times, law, "times"), shift),
            variates=lookup(times, variates, "times.variates"),
            weighting=bind(weightings, config.weighting, "weighting"),
            dropout_rate=config.conditioning_dropout,
            optimizer=optimizer,
            schedule=schedule,
            averages=averages,
            accumulation_steps=config.accumulation_steps,
            flip=config.data.flip,
            dequantize_levels=config.data.dequantize_levels,
            sampler=sampler,
        )

    def init(self, key: Key[Array, ""]) -> State:
        image, time, label = jnp.zeros((1, *self.image_shape)), jnp.zeros(1), jnp.zeros(1, int)
        params = self.network.init(key, image, time, label)["params"]
        return State(
            step=jnp.int32(0),
            params=params,
            optimizer_state=self.optimizer.init(params),
            averages={name: jax.tree.map(jnp.copy, params) for name, _ in self.averages},
        )

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[State, dict[str, Float[Array, ""] | Mean]]:
        def loss_of(params, batch, key):
            dropout_key, loss_key = jax.random.split(key)
            images = batch["image"]
            if self.flip:
                images = flip_images(jax.random.fold_in(key, 2), images)
            images = to_float(images) if images.dtype == jnp.uint8 else images
            if self.dequantize_levels:
                width = 2 / (self.dequantize_levels - 1)
                images = diffusion.dequantize(jax.random.fold_in(key, 3), images, width)
            labels = diffusion.drop_conditioning(
                dropout_key, batch["label"], self.network.null_label, self.dropout_rate
            )
            losses, t = diffusion.simple_loss(
                loss_key,
                self._apply(params),
                images,
                labels,
                process=self.process,
                target=self.target,
                times=self.times,
                variates=self.variates,
                weighting=self.weighting,
            )
            return losses.mean(), diffusion.sums_by_time(losses, t, self.process, TIME_BINS)

        gradient_of = value_and_gradient(loss_of, self.accumulation_steps)
        (loss, (sums, counts)), gradients = gradient_of(state.params, batch, key)
        updates, optimizer_state = self.optimizer.update(gradients, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        evaluated = evaluation_params(optimizer_state, params)
        metrics = {
            "loss": loss,
            "learning_rate": self.schedule(state.step),
            **{name: Mean(*bin) for name, *bin in zip(self._time_bins(), sums, counts, strict=True)},
            **group_norms("norm/gradient", gradients),
            **group_norms("norm/parameter", params),
            **group_norms("norm/update", updates),
        }
        return State(
            step=state.step + 1,
            params=params,
            optimizer_state=optimizer_state,
            averages={
                name: update_average(state.averages[name], evaluated, state.step, rule)
                for name, rule in self.averages
            },
        ), metrics

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        guidance_scale: float | Float[Array, ""],
        time_grid: Float[Array, " times"],
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, "batch height width channels"] | Float[Array, "times batch height width channels"]:
        """Samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Args:
            weights: "params" (of a schedule-free optimizer, its average) or the name of one of the state's averages.
            guidance_scale: 1 is plain conditional sampling (see `diffusion.guide`).
            time_grid: noise end first.
            trajectory: return the states at all times.
        """
        there = {"params": evaluation_params(state.optimizer_state, state.params), **state.averages}
        keys = diffusion.sample_keys(key, indices)
        denoiser = diffusion.predict(self._apply(there[weights]), self.process, self.target)
        guided = diffusion.guide(denoiser, labels, self.network.null_label, guidance_scale)
        noise = self.process.prior(keys, self.image_shape, time_grid[0])
        return self.sampler(guided, self.process, noise, time_grid, keys=keys, trajectory=trajectory)

    animation = "noise_to_data.gif"
    as_data = staticmethod(to_uint8)
    picture = staticmethod(image_grid)
    reference = staticmethod(Reference)

    def sampling_inputs(self, sampling: Any) -> tuple[Float[Array, ""], Float[Array, " times"]]:
        return jnp.float32(sampling.guidance_scale), time_grid(self.process, sampling)

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {
            "sampler": described(sampling.sampler),
            "num_steps": sampling.num_steps,
            "grid": described(sampling.grid),
            "guidance_scale": sampling.guidance_scale,
        }

    def evaluate(self, state: State, config: Any, reference: Reference) -> dict[str, Any]:
        return evaluate_images(self, state, config, reference)[0]

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return []  # the loss tells

    def _time_bins(self) -> list[str]:
        edges = np.linspace(*self.process.domain, TIME_BINS + 1)
        return [f"loss/t_{low:.3g}_{high:.3g}" for low, high in itertools.pairwise(edges)]

    def _apply(self, params: PyTree) -> Callable:
        return functools.partial(self.network.apply, {"params": params})
