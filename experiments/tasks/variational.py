"""Variational autoencoders, trained on a bound of the likelihood, from whose prior one samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.evaluation.autoencoders import evaluate_bounds
from experiments.evaluation.images import Reference, evaluate_images
from experiments.launch.opening import bind
from experiments.launch.sampling import make_averages
from experiments.tasks.adversarial import WALK_STEPS
from experiments.tasks.optimization import Averages, State, first_state, next_state
from genjax import adversarial, autoencoding
from genjax.autoencoding import instruments, likelihoods
from genjax.data import flip_images, to_float, to_uint8
from genjax.diffusion import sample_keys, slerp
from genjax.models.autoencoders import vae
from genjax.training import at_rounded, make_optimizer, value_and_gradient
from genjax.training.pictures import image_grid


@dataclass(frozen=True)
class VariationalAutoencoder:
    """Encoder and decoder on the ELBO, or, with more than one `num_samples`, on the importance-weighted bound."""

    network: nn.Module
    image_shape: tuple[int, int, int]
    flip: bool
    likelihood: autoencoding.Likelihood
    beta: float
    free_nats: float
    num_samples: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    averages: Averages
    accumulation_steps: int
    params_dtype: str | None

    animation: ClassVar[str] = "latent_walk.gif"

    @classmethod
    def from_config(cls, config: Any) -> "VariationalAutoencoder":
        """Raises ValueError on names that do not exist, and on a beta or free nats with the importance-weighted bound."""
        image_shape = tuple(config.data.image_shape)
        bound = config.bound
        if bound.num_samples > 1 and (bound.beta != 1 or bound.free_nats):
            raise ValueError(
                f"config.bound.beta {bound.beta} and config.bound.free_nats {bound.free_nats} are of the ELBO; with "
                f"config.bound.num_samples {bound.num_samples} let them be 1 and 0"
            )
        likelihood = bind(likelihoods, config.likelihood, "likelihood")()
        optimizer, schedule = make_optimizer(**config.optimizer, num_steps=config.num_steps)
        return cls(
            network=bind(vae, config.model, "model")(image_shape=image_shape, outputs=likelihood.parameters),
            image_shape=image_shape,
            flip=config.data.flip,
            likelihood=likelihood,
            beta=bound.beta,
            free_nats=bound.free_nats,
            num_samples=bound.num_samples,
            optimizer=optimizer,
            schedule=schedule,
            averages=make_averages(config),
            accumulation_steps=config.accumulation_steps,
            params_dtype=config.get("params_dtype"),
        )

    def init(self, key: Key[Array, ""]) -> State:
        params = self.network.init(key, jnp.zeros((1, *self.image_shape)))["params"]
        return first_state(params, self.optimizer, self.averages)

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        def loss_of(params, batch, key):
            images = batch["image"]
            if self.flip:
                images = flip_images(jax.random.fold_in(key, 2), images)
            return self.loss(params, to_float(images), key)

        gradient_of = value_and_gradient(at_rounded(loss_of, self.params_dtype), self.accumulation_steps)
        (loss, measured), gradients = gradient_of(state.params, batch, key)
        state, metrics = next_state(state, gradients, self.optimizer, self.schedule, self.averages)
        return state, {"loss": loss} | measured | metrics

    def loss(
        self, params: PyTree, images: Float[Array, "batch height width channels"], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Minus the bound, in nats per image, and its parts."""
        mean, log_variance = self.encode(params, images)
        divergences = autoencoding.divergence(mean, log_variance)
        measured = {"nats/divergence": divergences.sum(-1).mean()}
        if self.num_samples > 1:
            bounds = autoencoding.importance_weighted_bound(
                autoencoding.log_weights(
                    key, self.log_likelihood(params, images), mean, log_variance, self.num_samples
                )
            )
            return -bounds.mean(), measured
        z = autoencoding.sample_posterior(key, mean, log_variance)
        log_likelihood = self.log_likelihood(params, images)(z)
        measured["nats/reconstruction"] = -log_likelihood.mean()
        if self.free_nats:
            divergence = autoencoding.free_bits(divergences, self.free_nats)
            return -log_likelihood.mean() + self.beta * divergence, measured
        return -autoencoding.elbo(log_likelihood, divergences, self.beta).mean(), measured

    def encode(self, params, images):
        return self.network.apply({"params": params}, images, method="encode")

    def decode(self, params, latents):
        return self.network.apply({"params": params}, latents, method="decode")

    def log_likelihood(self, params, images):
        """log p(images | z) as a function of z."""
        return lambda z: self.likelihood.log_probability(self.decode(params, z), images)

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, "batch height width channels"] | Float[Array, "frames batch height width channels"]:
        """Means of p(x|z), z from the prior; sample `indices[i]` depends on its index, not its batch. Labels count
        for nothing.

        Args:
            weights: as of `State.weights`.
            trajectory: a walk through the latents (by `slerp`) that ends in the samples.
        """
        params = state.weights(weights)
        draw = lambda key: jax.random.normal(key, (2, self.network.latent_size))
        stops = jax.vmap(draw)(sample_keys(key, indices)).swapaxes(0, 1)
        images = lambda z: self.likelihood.mean(self.decode(params, z))
        if not trajectory:
            return images(stops[1])
        return jax.lax.map(images, adversarial.walk(stops, WALK_STEPS, slerp))

    as_data = staticmethod(to_uint8)
    picture = staticmethod(image_grid)
    reference = staticmethod(Reference)

    def sampling_inputs(self, sampling: Any) -> tuple:
        return ()

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {"sampler": "mean of p(x|z), z ~ N(0, I)"}

    def evaluate(self, state: State, config: Any, reference: Reference) -> dict[str, Any]:
        """The measures of `evaluate_images` of samples from the prior, and the bounds on held-out images."""
        report, _ = evaluate_images(self, state, config, reference)
        return report | evaluate_bounds(self, state, config, reference)

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return instruments.alarms(metrics)
