"""Diffusion and flow matching."""

import functools
import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.evaluation.autoencoders import Originals, in_batches
from experiments.evaluation.features.features import evaluate_prompt_features, require_features
from experiments.evaluation.images import Reference, evaluate_images
from experiments.evaluation.prompts import Pairs, evaluate_prompts
from experiments.inputs.conditions import Classes, Prompts
from experiments.launch.opening import bind, lookup
from experiments.launch.sampling import described, evaluation_times, make_averages, time_grid
from experiments.tasks.optimization import Averages, State, first_state, next_state
from experiments.tasks.trained import FrozenAutoencoder, as_images
from genjax import diffusion
from genjax.data import Dataset, flip_images, to_float, to_uint8
from genjax.data.transforms import Transform
from genjax.diffusion import losses, processes, samplers, targets, times, weightings
from genjax.pretrained.lpips import require_lpips
from genjax.training import Mean, at_rounded, make_optimizer, value_and_gradient
from genjax.training.pictures import image_grid

TIME_BINS = 8  # equal parts of a process' times, for each of which the loss is logged


def _network(config: Any) -> tuple[nn.Module, Classes | Prompts]:
    """The network, and what it is told: of a module with `text`, prompts.

    Raises:
        ValueError: names or arguments that do not exist, or another number of prompts than of rows in pictures.
    """
    fields = dict(config.model)
    name = fields.pop("module", "dit")
    by_class = ("dit", "lightning_dit")
    if name not in (*by_class, "pixart", "mmdit", "flux"):
        raise ValueError(
            f"config.model.module is {name!r}; networks told a class are in {' and '.join(by_class)}, those told a prompt in "
            "pixart, mmdit and flux"
        )
    make = bind(importlib.import_module(f"genjax.models.transformers.{name}"), fields, "model")
    if name in by_class:
        return make(num_classes=config.data.num_classes), Classes(config.data.num_classes)
    return make(), Prompts.from_config(config)


@dataclass(frozen=True)
class ImageDiffusion:
    """Diffusion of images by class or by prompt, with classifier-free guidance.

    Batches are dictionaries of `image` (`[batch height width channels]`, bytes, or floats as the network shall see
    them) and what the conditioning reads of them: `label` (`[batch]`); or `tokens`, `pooled` and `mask` of a caption.
    With an autoencoder the network works on its latents: floats are taken for these,
    bytes are encoded within the step, and samples are decoded.

    Attributes:
        image_shape: of the batches' images.
        latent_shape: of what the network works on; the images themselves without an autoencoder.
    """

    network: nn.Module
    conditioning: Classes | Prompts
    autoencoder: FrozenAutoencoder | None
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    process: diffusion.Process
    target: Callable
    times: times.Law
    variates: Callable
    loss: Callable
    weighting: losses.Weighting
    dropout_rate: float
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    averages: Averages
    accumulation_steps: int
    params_dtype: str | None
    flip: bool
    dequantize_levels: int | None
    sampler: Callable

    @classmethod
    def from_config(cls, config: Any) -> "ImageDiffusion":
        """Raises ValueError on names that do not exist, images that do not divide into patches, and a target that is singular
        where the sampler would evaluate the network."""
        if config.evaluation.get("vgg16"):
            require_lpips()
        require_features(config)
        image_shape = tuple(config.data.image_shape)
        network, conditioning = _network(config)
        autoencoder, latent_shape = FrozenAutoencoder.from_config(config), image_shape
        if not autoencoder and config.data.name == "latents":
            raise ValueError(
                "samples of latents have to be decoded: set config.autoencoder.run or config.autoencoder.published to what "
                "encoded them"
            )
        if autoencoder and config.data.name != "latents":
            latent_shape = autoencoder.latent_shape(image_shape)
        loss = bind(losses, config.loss, "loss")
        if loss.func is losses.hybrid_loss and network.out_channels != 2 * latent_shape[-1]:
            raise ValueError(
                f"config.loss.name is 'hybrid_loss', which learns a variance: config.model.out_channels is "
                f"{network.out_channels} and has to be {2 * latent_shape[-1]}, twice the channels"
            )
        if any(side % network.patch_size for side in latent_shape[:2]):
            name = "the latents' shape" if latent_shape != image_shape else "config.data.image_shape"
            raise ValueError(
                f"{name} {latent_shape} does not divide into patches of {network.patch_size} "
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
            conditioning=conditioning,
            autoencoder=autoencoder,
            image_shape=image_shape,
            latent_shape=latent_shape,
            process=process,
            target=target,
            times=times.shifted(bind(times, law, "times"), shift),
            variates=lookup(times, variates, "times.variates"),
            loss=loss,
            weighting=bind(weightings, config.weighting, "weighting"),
            dropout_rate=config.conditioning_dropout,
            optimizer=optimizer,
            schedule=schedule,
            averages=averages,
            accumulation_steps=config.accumulation_steps,
            params_dtype=config.get("params_dtype"),
            flip=config.data.flip,
            dequantize_levels=config.data.dequantize_levels,
            sampler=sampler,
        )

    def frozen(self) -> tuple:
        """Of the autoencoder, if there is one, the variables and the moments of its latents; what the conditioning reads."""
        frozen = self.conditioning.frozen()
        if self.autoencoder:
            frozen["autoencoder"] = self.autoencoder.load()
        return (frozen,) if frozen else ()

    def abstract_frozen(self) -> tuple:
        """What `frozen` would load, in shapes: no weights are read and no text encoded."""
        frozen = self.conditioning.abstract_frozen()
        if self.autoencoder:
            frozen["autoencoder"] = self.autoencoder.abstract(self.image_shape)
        return (frozen,) if frozen else ()

    def transform(self, dataset: Dataset) -> Transform | None:
        """What is done to examples before they make a batch."""
        return self.conditioning.transform(dataset)

    def init(self, key: Key[Array, ""]) -> State:
        image, time = jnp.zeros((1, *self.latent_shape)), jnp.zeros(1)
        params = self.network.init(key, image, time, self.conditioning.example())["params"]
        return first_state(params, self.optimizer, self.averages)

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree = None
    ) -> tuple[State, dict[str, Float[Array, ""] | Mean]]:
        def loss_of(params, batch, key):
            dropout_key, loss_key = jax.random.split(key)
            images = batch["image"]
            if self.flip:
                images = flip_images(jax.random.fold_in(key, 2), images)
            if images.dtype == jnp.uint8:
                images = to_float(images)
                if self.autoencoder:
                    images = jax.lax.stop_gradient(self.autoencoder.encode(frozen["autoencoder"], images))
            if self.dequantize_levels:
                width = 2 / (self.dequantize_levels - 1)
                images = diffusion.dequantize(jax.random.fold_in(key, 3), images, width)
            conditioning = diffusion.drop_conditioning(
                dropout_key,
                self.conditioning.of_batch(batch),
                self.conditioning.dropped(frozen),
                self.dropout_rate,
            )
            each, t = self.loss(
                loss_key,
                self._apply(params),
                images,
                conditioning,
                process=self.process,
                target=self.target,
                times=self.times,
                variates=self.variates,
                weighting=self.weighting,
            )
            return each.mean(), diffusion.sums_by_time(each, t, self.process, TIME_BINS)

        gradient_of = value_and_gradient(at_rounded(loss_of, self.params_dtype), self.accumulation_steps)
        (loss, (sums, counts)), gradients = gradient_of(state.params, batch, key)
        state, metrics = next_state(state, gradients, self.optimizer, self.schedule, self.averages)
        bins = zip(self._time_bins(), sums, counts, strict=True)
        return state, {"loss": loss} | {name: Mean(*bin) for name, *bin in bins} | metrics

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        guidance_scale: float | Float[Array, ""],
        time_grid: Float[Array, " times"],
        frozen: PyTree = None,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, "batch height width channels"] | Float[Array, "times batch height width channels"]:
        """Samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Args:
            weights: as of `State.weights`.
            guidance_scale: 1 is plain conditional sampling (see `diffusion.guide`).
            time_grid: noise end first.
            frozen: what `frozen` loads, if anything.
            trajectory: return the states at all times.
        """
        keys = diffusion.sample_keys(key, indices)
        denoiser = diffusion.predict(
            self._apply(state.weights(weights)),
            self.process,
            self.target,
            learned_variance=self.loss.func is losses.hybrid_loss,
        )
        asked_for, dropped = self.conditioning.asked_for(labels, frozen), self.conditioning.dropped(frozen)
        guided = diffusion.guide(denoiser, asked_for, dropped, guidance_scale)
        noise = self.process.prior(keys, self.latent_shape, time_grid[0])
        samples = self.sampler(guided, self.process, noise, time_grid, keys=keys, trajectory=trajectory)
        if not self.autoencoder:
            return samples
        decode = functools.partial(self.autoencoder.decode, frozen["autoencoder"])
        return jax.lax.map(decode, samples) if trajectory else decode(samples)

    animation = "noise_to_data.gif"
    as_data = staticmethod(to_uint8)
    picture = staticmethod(image_grid)

    def asked(self, prompts: Sequence[str]) -> "ImageDiffusion":
        """The task whose labels stand for these prompts."""
        return replace(self, conditioning=replace(self.conditioning, prompts=tuple(prompts)))

    def reference(self, config: Any) -> Reference | tuple[Reference, Originals] | Pairs:
        """Of images, also where the data are latents."""
        if config.data.name == "latents":
            config = as_images(config)
        if isinstance(self.conditioning, Prompts):
            return Pairs(config, self.conditioning)
        reference = Reference(config)
        return (reference, Originals(config)) if config.evaluation.vgg16 else reference

    def sampling_inputs(self, sampling: Any) -> tuple:
        return jnp.float32(sampling.guidance_scale), time_grid(self.process, sampling), *self.frozen()

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {
            "sampler": described(sampling.sampler),
            "num_steps": sampling.num_steps,
            "grid": described(sampling.grid),
            "guidance_scale": sampling.guidance_scale,
        }

    def evaluate(
        self, state: State, config: Any, reference: Reference | tuple[Reference, Originals] | Pairs
    ) -> dict[str, Any]:
        """The measures of `evaluate_images`, or of `evaluate_prompts`; with `config.evaluation.vgg16` also the Fréchet
        distance of VGG16's features, that of training images, and that of the autoencoder's reconstructions of held-out
        ones."""
        if isinstance(reference, Pairs):
            report = evaluate_prompts(self, state, config, reference)
            prompts = reference.names[reference.held_out]
            return report | evaluate_prompt_features(self, state, config, prompts)
        pictures = reference[0] if config.evaluation.vgg16 else reference
        report, images = evaluate_images(self, state, config, pictures)
        if config.evaluation.vgg16:
            originals = reference[1]
            report |= {"fd_vgg16": originals.distance(images), "fd_vgg16_train": originals.floor}
            if self.autoencoder:
                reconstructions = self._reconstruct(originals.examples)
                report["fd_vgg16_reconstruction"] = originals.distance(reconstructions)
        return report

    def _reconstruct(self, images: np.ndarray) -> np.ndarray:
        frozen = self.autoencoder.load()
        both = lambda frozen, x: self.autoencoder.decode(frozen, self.autoencoder.encode(frozen, to_float(x)))
        program = jax.jit(lambda frozen, x: to_uint8(both(frozen, x)))
        return in_batches(lambda x: program(frozen, x), images)

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return []  # the loss tells

    def _time_bins(self) -> list[str]:
        edges = np.linspace(*self.process.domain, TIME_BINS + 1)
        return [f"loss/t_{low:.3g}_{high:.3g}" for low, high in itertools.pairwise(edges)]

    def _apply(self, params: PyTree) -> Callable:
        return functools.partial(self.network.apply, {"params": params})
