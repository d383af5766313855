"""Variational autoencoders, trained on a bound of the likelihood and sampled from the prior."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.standardized_pixels import check_not_standardized
from experiments.tasks.optimization import OneNetwork, Optimization, State
from experiments.tasks.programs import on_mesh
from experiments.tasks.walks import latent_walk
from genjax import autoencoding
from genjax.autoencoding import diagnostics
from genjax.data import flip_images
from genjax.diffusion import sample_keys, slerp
from genjax.training.sampling import mesh_of
from genjax.training.task import Condition, Space


@dataclass(frozen=True)
class Bound:
    """The bound of the likelihood that is trained on.

    Attributes:
        num_samples: more than 1 take the importance-weighted bound instead of the ELBO.
        beta: weight of the ELBO's divergence.
        free_nats: what each latent may say without cost.
    """

    num_samples: int = 1
    beta: float = 1.0
    free_nats: float = 0.0

    def __post_init__(self):
        if self.num_samples < 1:
            raise ValueError(f"config.bound.num_samples is {self.num_samples}; it is 1 or more")
        if self.num_samples > 1 and (self.beta != 1 or self.free_nats):
            raise ValueError(
                f"config.bound.beta {self.beta} and config.bound.free_nats {self.free_nats} are of "
                f"the ELBO; with config.bound.num_samples {self.num_samples} let them be 1 and 0"
            )


@dataclass(frozen=True)
class VariationalAutoencoder(OneNetwork):
    """Encoder and decoder on the ELBO or on the importance-weighted bound."""

    network: nn.Module
    space: Space
    condition: Condition
    likelihood: autoencoding.Likelihood
    bound: Bound
    optimization: Optimization
    flip: bool

    animation: ClassVar[str] = "latent_walk.gif"
    config_fields = dict(bound=dict(num_samples=int, beta=float, free_nats=float))

    @classmethod
    def from_config(cls, config: Any) -> "VariationalAutoencoder":
        """Return the task of a config.

        Raises:
            ValueError: a part does not exist, the bound has no samples, or the importance-weighted
                bound has a beta or free nats.
        """
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        check_not_standardized(space, "a VAE")
        likelihood = kinds.LIKELIHOOD.bind(config.likelihood, "likelihood")
        network = kinds.VARIATIONAL.bind(
            config.model, "model", image_shape=space.shape, outputs=likelihood.parameters
        )
        return cls(
            network=network,
            space=space,
            condition=kinds.CONDITION.bind(config.condition, "condition"),
            likelihood=likelihood,
            bound=Bound(**config.bound),
            optimization=Optimization.from_config(config),
            flip=config.data.flip,
        )

    def init(self, key: Key[Array, ""]) -> State:
        return self.optimization.first_state(
            self.network.init(key, jnp.zeros((1, *self.space.shape)))["params"]
        )

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        def loss(params, batch, key):
            x = batch[self.space.feature]
            if self.flip:
                x = flip_images(jax.random.fold_in(key, 2), x)
            return self.loss(params, self.space.encode(x), key)

        state, measured, metrics = self.optimization.step(state, loss, batch, key)
        return state, {"loss": metrics.pop("loss")} | measured | metrics

    def loss(
        self,
        params: PyTree,
        images: Float[Array, "batch height width channels"],
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Return minus the bound, in nats per image, and its parts."""
        mean, log_variance = self.encode(params, images)
        divergences = autoencoding.divergence(mean, log_variance)
        measured = {"nats/divergence": divergences.sum(-1).mean()}
        log_likelihood, bound = self.log_likelihood(params, images), self.bound
        if bound.num_samples > 1:
            log_weights = autoencoding.log_weights(
                key, log_likelihood, mean, log_variance, bound.num_samples
            )
            return -autoencoding.importance_weighted_bound(log_weights).mean(), measured
        reconstruction = log_likelihood(autoencoding.sample_posterior(key, mean, log_variance))
        measured["nats/reconstruction"] = -reconstruction.mean()
        if bound.free_nats:
            divergence = autoencoding.free_bits(divergences, bound.free_nats)
            return -reconstruction.mean() + bound.beta * divergence, measured
        return -autoencoding.elbo(reconstruction, divergences, bound.beta).mean(), measured

    def encode(self, params, images):
        return self.network.apply({"params": params}, images, method="encode")

    def decode(self, params, latents):
        return self.network.apply({"params": params}, latents, method="decode")

    def log_likelihood(self, params, images):
        """Return log p(images | z) as a function of z."""
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
    ) -> (
        Float[Array, "batch height width channels"]
        | Float[Array, "frames batch height width channels"]
    ):
        """Return means of p(x|z) for z from the prior, one per label; labels are unused.

        Sample `indices[i]` depends on its index, not its batch.

        Args:
            weights: as of `State.weights`.
            trajectory: a walk through the latents (by `slerp`) that ends in the samples.
        """
        params = state.weights(weights)
        draw = lambda key: jax.random.normal(key, (2, self.network.latent_size))
        stops = jax.vmap(draw)(sample_keys(key, indices)).swapaxes(0, 1)
        images = lambda z: self.likelihood.mean(self.decode(params, z))
        return latent_walk(images, stops, slerp) if trajectory else images(stops[1])

    def sampling_inputs(self, sampling: Any) -> tuple:
        return ()

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        return ()

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often sampling evaluates the decoder: once."""
        return 1

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {"sampler": "mean of p(x|z), z ~ N(0, I)"}

    def functions(self, state: State, sampling: Any) -> dict[str, Callable]:
        """Return `bounds(images, key, num_samples)`, and the `levels` of the likelihood.

        `bounds` gives the ELBO and the importance-weighted bound of each image, in nats, the
        posterior means, and the images decoded of those.
        """
        params, mesh = state.weights(sampling.weights), mesh_of(state)

        def bounds(images, key, num_samples):
            return on_mesh(mesh, _bounds, self, num_samples)(params, images, key)

        return {"bounds": bounds, "levels": self.likelihood.levels}

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return diagnostics.alarms(metrics)


def _bounds(task: VariationalAutoencoder, num_samples: int, params, images, key):
    mean, log_variance = task.encode(params, images)
    log_weights = autoencoding.log_weights(
        key, task.log_likelihood(params, images), mean, log_variance, num_samples
    )
    bound = autoencoding.importance_weighted_bound(log_weights)
    return log_weights.mean(0), bound, mean, task.likelihood.mean(task.decode(params, mean))
