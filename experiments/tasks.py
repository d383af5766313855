"""Tasks: a network, an algorithm, data and metrics, with numbers from a config."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import bind, lookup
from genjax import diffusion
from genjax.data import to_float
from genjax.diffusion import processes, samplers, targets, times
from genjax.models import dit
from genjax.training import make_optimizer, update_ema, value_and_gradient


@flax.struct.dataclass
class State:
    step: Int[Array, ""]
    params: PyTree
    optimizer_state: PyTree
    ema: PyTree


@dataclass(frozen=True)
class ImageDiffusion:
    """Class-conditional diffusion of images, with classifier-free guidance.

    Batches are dictionaries of `image` (uint8, `[batch height width channels]`) and `label` (`[batch]`).
    """

    network: nn.Module
    image_shape: tuple[int, int, int]
    process: diffusion.Process
    target: Callable
    times: Callable
    dropout_rate: float
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    ema_decay: float
    accumulation_steps: int
    sampler: Callable

    @classmethod
    def from_config(cls, config: Any) -> "ImageDiffusion":
        """Raises ValueError on names that do not exist and images that do not divide into patches."""
        image_shape = tuple(config.data.image_shape)
        network = bind(dit, config.model, "model")(num_classes=config.data.num_classes)
        if any(side % network.patch_size for side in image_shape[:2]):
            raise ValueError(
                f"config.data.image_shape {image_shape} does not divide into patches of {network.patch_size} "
                "pixels; change it or config.model.patch_size"
            )
        law = dict(config.times)
        shift = law.pop("shift")
        optimizer, schedule = make_optimizer(**config.optimizer, num_steps=config.num_steps)
        return cls(
            network=network,
            image_shape=image_shape,
            process=bind(processes, config.process, "process")(),
            target=lookup(targets, config.target, "target"),
            times=times.shifted(bind(times, law, "times"), shift),
            dropout_rate=config.conditioning_dropout,
            optimizer=optimizer,
            schedule=schedule,
            ema_decay=config.ema_decay,
            accumulation_steps=config.accumulation_steps,
            sampler=lookup(samplers, config.sampling.sampler, "sampling.sampler"),
        )

    def init(self, key: Key[Array, ""]) -> State:
        image, time, label = jnp.zeros((1, *self.image_shape)), jnp.zeros(1), jnp.zeros(1, int)
        params = self.network.init(key, image, time, label)["params"]
        return State(
            step=jnp.int32(0),
            params=params,
            optimizer_state=self.optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params),
        )

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        def loss_of(params, batch, key):
            dropout_key, loss_key = jax.random.split(key)
            images = to_float(batch["image"])
            labels = diffusion.drop_conditioning(
                dropout_key, batch["label"], self.network.null_label, self.dropout_rate
            )
            losses, _ = diffusion.simple_loss(
                loss_key,
                self._apply(params),
                images,
                labels,
                process=self.process,
                target=self.target,
                times=self.times,
            )
            return losses.mean(), None

        (loss, _), gradients = value_and_gradient(loss_of, self.accumulation_steps)(state.params, batch, key)
        updates, optimizer_state = self.optimizer.update(gradients, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": self.schedule(state.step),
        }
        return State(
            step=state.step + 1,
            params=params,
            optimizer_state=optimizer_state,
            ema=update_ema(state.ema, params, state.step, self.ema_decay),
        ), metrics

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        guidance_scale: float | Float[Array, ""],
        time_grid: Float[Array, " times"],
        indices: Int[Array, " batch"],
        *,
        trajectory: bool = False,
    ) -> Float[Array, "batch height width channels"] | Float[Array, "times batch height width channels"]:
        """Samples of the averaged weights, one per label; sample `indices[i]` depends on its index, not its batch.

        Args:
            guidance_scale: 1 is plain conditional sampling (see `diffusion.guide`).
            time_grid: noise end first.
            trajectory: return the states at all times.
        """
        keys = diffusion.sample_keys(key, indices)
        denoiser = diffusion.predict(self._apply(state.ema), self.process, self.target)
        guided = diffusion.guide(denoiser, labels, self.network.null_label, guidance_scale)
        noise = self.process.prior(keys, self.image_shape)
        return self.sampler(guided, self.process, noise, time_grid, trajectory=trajectory)

    def _apply(self, params: PyTree) -> Callable:
        return functools.partial(self.network.apply, {"params": params})
