"""Autoencoders of images, video and sound.

The bottleneck has a divergence or a quantizer. The loss may have a perceptual part and a
discriminator.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs import autoencoders
from experiments.inputs.datasets import Data
from experiments.inputs.standardized_pixels import check_not_standardized
from experiments.tasks import optimization
from experiments.tasks.optimization import (
    Averages,
    Player,
    first_averages,
    make_averages,
    update_averages,
)
from experiments.tasks.penalties import Regularizer
from experiments.tasks.programs import on_mesh
from experiments.tasks.walks import latent_walk
from genjax import adversarial, autoencoding
from genjax.adversarial import regularizers
from genjax.autoencoding import diagnostics
from genjax.data import flip_images
from genjax.metrics.lpips import LPIPS
from genjax.pretrained.lpips import load_lpips
from genjax.training import group_norms, make_optimizer
from genjax.training.sampling import mesh_of
from genjax.training.task import Condition, Space


@flax.struct.dataclass
class State:
    """The autoencoder, its averages and its discriminator.

    Attributes:
        discriminator: None without an adversary.
        averages: of the autoencoder's variables, by name.
    """

    step: Int[Array, ""]
    autoencoder: Player
    discriminator: Player | None
    averages: dict[str, PyTree]

    @property
    def params(self) -> dict[str, PyTree]:
        both = {"autoencoder": self.autoencoder, "discriminator": self.discriminator}
        return {name: player.params for name, player in both.items() if player is not None}


@dataclass(frozen=True)
class Adversary:
    """A discriminator, and how it takes part in the training of the autoencoder.

    Attributes:
        weight: of the generator's loss; times `autoencoding.adaptive_weight` where `adaptive`.
        start_step: before this step, neither learns from the other. The discriminator and its
            optimizer stay as they were made, so a falling learning rate ends as many steps early.
        r1: the penalty of the mean logit of real images. Its burn-in counts from `start_step`.
        feature_matching: weight of `adversarial.feature_matching` in the generator's loss, for a
            discriminator that returns features. HiFi-GAN's weight of 2 is 1 here, because
            `least_squares` is half of its adversarial loss.
    """

    network: nn.Module
    objective: adversarial.Objective
    weight: float
    adaptive: bool
    start_step: int
    r1: Regularizer | None
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    feature_matching: float = 0.0

    @classmethod
    def from_config(cls, config: Any) -> "Adversary":
        fields = dict(config.adversary)
        network = {"name": "Discriminator", **fields.pop("network")}
        r1 = Regularizer(**fields.pop("r1"))
        optimizer, schedule = make_optimizer(
            **config.optimizer.discriminator,
            num_steps=config.num_steps,
            field="config.optimizer.discriminator",
        )
        return cls(
            network=kinds.PATCH_DISCRIMINATOR.bind(network, "adversary.network"),
            objective=kinds.OBJECTIVE.find(fields.pop("objective"), "adversary.objective"),
            r1=r1 if r1.weight or r1.end_weight else None,
            optimizer=optimizer,
            schedule=schedule,
            **fields,
        )


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder trained on a reconstruction loss, its bottleneck's loss and a discriminator's.

    The sources are Esser et al. 2021 ("VQGAN") and Rombach et al. 2022 ("Latent diffusion"). The
    loss's terms are means over pixel values or samples, so that a weight means the same at every
    size:

    - the reconstruction's distance, whose weight is 1;
    - "perceptual": LPIPS;
    - "divergence": of Gaussian latents, KL(q ‖ N(0, I)) of an image in nats, over the number of its
      pixel values;
    - those of the quantizer;
    - those inside the network, as `MelAutoencoder.inner_losses`.

    A video's frames are images to LPIPS and to the discriminator. The losses of a discriminator
    with several parts, as of sound, are summed over parts.
    """

    network: nn.Module
    space: Space
    condition: Condition
    data: Data
    perceptual: LPIPS
    distance: Callable
    weights: tuple[tuple[str, float], ...]
    adversary: Adversary | None
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    averages: Averages
    flip: bool

    @classmethod
    def from_config(cls, config: Any) -> "Autoencoder":
        """Return the task of a config.

        Raises:
            ValueError: a part does not exist, a term of the loss has no weight or a weight no term,
                or the network does not reconstruct the data's shape.
        """
        optimization.check_players(config, "an autoencoder, whose quantizer sees")
        fields = dict(config.model)
        if "quantizer" in fields:
            fields["quantizer"] = kinds.QUANTIZER.bind(fields["quantizer"], "model.quantizer")
        optimizer, schedule = make_optimizer(
            **config.optimizer.autoencoder,
            num_steps=config.num_steps,
            field="config.optimizer.autoencoder",
        )
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        check_not_standardized(space, "an autoencoder")
        task = cls(
            network=kinds.AUTOENCODER.bind(fields, "model"),
            space=space,
            condition=kinds.CONDITION.bind(config.condition, "condition"),
            data=Data.from_config(config),
            perceptual=LPIPS(),
            distance=kinds.DISTANCE.bind(config.reconstruction, "reconstruction"),
            weights=tuple((name, weight) for name, weight in config.weights.items() if weight),
            adversary=Adversary.from_config(config) if config.adversary.weight else None,
            optimizer=optimizer,
            schedule=schedule,
            averages=make_averages(config),
            flip=config.data.flip,
        )
        task._check(config.weights)
        return task

    def _check(self, weights: Mapping[str, float]) -> None:
        y, terms = _shapes(self.network, tuple(self.space.shape))
        if y.shape[1:] != tuple(self.space.shape):
            raise ValueError(
                f"config.data.image_shape is {self.space.shape}, which "
                f"{type(self.network).__name__} reconstructs as {y.shape[1:]}: take sides that are "
                f"multiples of {self.network.factor}, and as many channels as it makes"
            )
        with_weight = {*terms, "perceptual"}
        if with_weight - {"perceptual"} - set(weights) or set(weights) - with_weight:
            raise ValueError(
                f"config.weights has {', '.join(sorted(weights))}; {type(self.network).__name__} "
                f"needs {', '.join(sorted(with_weight))}, of which 0 leaves a term out"
            )

    def frozen(self) -> tuple:
        """Return the variables of LPIPS, if it has a weight."""
        return (load_lpips()[1],) if "perceptual" in dict(self.weights) else ()

    def abstract_frozen(self) -> tuple:
        """Return what `frozen` would load, in shapes."""
        if "perceptual" not in dict(self.weights):
            return ()
        images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        return (jax.eval_shape(self.perceptual.init, jax.random.key(0), images, images),)

    def init(self, key: Key[Array, ""]) -> State:
        keys = jax.random.split(key)
        example = jnp.zeros((1, *self.space.shape))
        autoencoder = Player.create(self.network.init(keys[0], example), self.optimizer)
        discriminator = None
        if self.adversary:
            variables = self.adversary.network.init(keys[1], _frames(example))
            discriminator = Player.create(variables, self.adversary.optimizer)
        return State(
            step=jnp.int32(0),
            autoencoder=autoencoder,
            discriminator=discriminator,
            averages=first_averages(self.averages, autoencoder.variables),
        )

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], lpips: PyTree = None
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        x = batch[self.space.feature]
        flip_key, code_key = jax.random.split(key)
        if self.flip:
            x = flip_images(flip_key, x)
        x = self.space.encode(x)
        player, weights = state.autoencoder, dict(self.weights)

        (y, terms), pull_back, (kept, measured) = jax.vjp(
            lambda params: reconstruct(
                self.network, params, player.variables, x, code_key, train=True
            ),
            player.params,
            has_aux=True,
        )
        (loss, metrics), by_images = jax.value_and_grad(self._distance, has_aux=True)(y, x, lpips)
        of_terms = {name: weights.get(name, 0.0) for name in terms}
        loss += sum(of_terms[name] * value for name, value in terms.items())
        metrics |= measured | {f"loss/{name}": value for name, value in terms.items()}

        discriminator = state.discriminator
        if self.adversary:

            def last_layer(by_images):  # computes nothing but that layer's gradient
                (gradients,) = pull_back((by_images, jax.tree.map(jnp.zeros_like, terms)))
                return gradients["decoder"]["conv_out"]

            more, by_images, measured = self._oppose(state, x, y, by_images, last_layer)
            loss += more
            discriminator, of_discriminator = self._update_discriminator(
                discriminator, state.step, x, y
            )
            metrics |= measured | of_discriminator

        (gradients,) = pull_back((by_images, jax.tree.map(jnp.float32, of_terms)))
        autoencoder, updates = player.step(self.optimizer, gradients, kept)
        metrics |= {
            "learning_rate": self.schedule(state.step),
            **group_norms("norm/gradient", gradients),
            **group_norms("norm/parameter", autoencoder.params),
            **group_norms("norm/update", updates),
        }
        averages = update_averages(self.averages, state.averages, autoencoder.variables, state.step)
        return State(state.step + 1, autoencoder, discriminator, averages), {
            "loss": loss,
            **metrics,
        }

    def _distance(self, y, x, lpips):
        """Return the reconstruction's loss, and its parts."""
        distance = self.distance(y, x).mean()
        if lpips is None:
            return distance, {"loss/reconstruction": distance}
        perceptual = self.perceptual.apply(lpips, _frames(y), _frames(x)).mean()
        loss = distance + dict(self.weights)["perceptual"] * perceptual
        return loss, {"loss/reconstruction": distance, "loss/perceptual": perceptual}

    def _oppose(self, state, x, y, by_images, last_layer):
        """Return the discriminator's part of the loss, the gradient by images, and metrics."""
        adversary = self.adversary
        generator_loss = functools.partial(self._generator_loss, state.discriminator, x)
        (value, metrics), by_adversary = jax.value_and_grad(generator_loss, has_aux=True)(y)
        weight = adversary.weight * (state.step >= adversary.start_step)
        if adversary.adaptive:
            weight *= autoencoding.adaptive_weight(last_layer(by_images), last_layer(by_adversary))
        own_step = jnp.maximum(state.step - adversary.start_step, 0)
        metrics["weight/adversarial"] = weight
        metrics["learning_rate_of_discriminator"] = adversary.schedule(own_step)
        return weight * value, by_images + weight * by_adversary, metrics

    def _judge(self, params, kept, x):
        """Return logits and features of all parts, and what the discriminator keeps.

        A part's logits are of all patches, and its features of all layers.
        """
        judged, kept = self.adversary.network.apply(
            {"params": params, **kept}, _frames(x), train=True, mutable=list(kept)
        )
        return (judged if isinstance(judged, tuple) else ([judged], [])), dict(kept)

    def _generator_loss(self, player, x, y):
        """Return the generator's loss, feature matching included, and its metrics."""
        (real, of_real), (fake, of_fake) = (
            self._judge(player.params, player.kept, each)[0] for each in (x, y)
        )
        loss = _sum_over_parts(self.adversary.objective.generator, real, fake)
        metrics = {"loss/adversarial": loss}
        if self.adversary.feature_matching:
            matching = adversarial.feature_matching(of_real, of_fake)
            metrics["loss/feature_matching"] = matching
            loss += self.adversary.feature_matching * matching
        return loss, metrics

    def _update_discriminator(self, player, step, x, y):
        adversary, y = self.adversary, jax.lax.stop_gradient(y)

        def loss_of(params):
            (real, _), kept = self._judge(params, player.kept, x)
            (fake, _), kept = self._judge(params, kept, y)
            loss = _sum_over_parts(adversary.objective.discriminator, real, fake)
            real, fake = (jnp.concatenate([a.reshape(-1) for a in each]) for each in (real, fake))
            metrics = {
                "loss/discriminator": loss,
                "logit/real": real.mean(),
                "logit/fake": fake.mean(),
            }
            metrics |= adversarial.diagnostics.accuracies(adversary.objective, real, fake)
            if adversary.r1:
                own_step = jnp.maximum(step - adversary.start_step, 0)
                weight, every = adversary.r1.weight_at(own_step), adversary.r1.every
                critic = lambda x: _mean_logits(self._judge(params, player.kept, x)[0][0])
                penalty = regularizers.lazy_penalty(
                    step,
                    every,
                    lambda: adversarial.gradient_penalty(critic, _frames(x)).mean(),
                    jnp.zeros(()),
                )
                loss += weight * every * penalty
                metrics["regularizer/r1"] = weight * every * penalty
            return loss, (kept, metrics)

        gradients, (kept, metrics) = jax.grad(loss_of, has_aux=True)(player.params)
        after, _ = player.step(adversary.optimizer, gradients, kept)
        started = step >= adversary.start_step
        after = jax.tree.map(lambda new, old: jnp.where(started, new, old), after, player)
        norms = {
            "norm/gradient_of_discriminator": optax.tree.norm(gradients),
            "norm/parameter_of_discriminator": optax.tree.norm(after.params),
        }
        return after, metrics | norms

    def encode(
        self, variables: PyTree, x: Float[Array, " batch *shape"]
    ) -> Float[Array, " batch *latent_shape"]:
        return autoencoders.encode(self.network, variables, x)

    def decode(
        self, variables: PyTree, latents: Float[Array, " batch *latent_shape"]
    ) -> Float[Array, " batch *shape"]:
        decoded = autoencoders.decode(self.network, variables, latents)
        return autoencoders.trim(decoded, self.space.shape)

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        originals: Array,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, " batch *shape"] | Float[Array, " frames batch *frame_shape"]:
        """Return reconstructions of originals, in turn; labels and key are unused.

        Args:
            weights: as of `State.weights`.
            originals: of the data's form.
            trajectory: of images and sound, a walk of straight lines through the latents from
                others to these; of video, its frames.
        """
        variables = self.variables(state, weights)
        z = self.encode(variables, self.space.encode(originals[indices % len(originals)]))
        if not trajectory:
            return self.decode(variables, z)
        if len(self.space.shape) == 4:
            return jnp.moveaxis(self.decode(variables, z), 1, 0)
        stops = jnp.stack([jnp.roll(z, 1, axis=0), z])
        return latent_walk(functools.partial(self.decode, variables), stops, adversarial.lerp)

    def variables(self, state: State, weights: str) -> dict[str, PyTree]:
        return {"params": state.autoencoder.variables, **state.averages}[weights]

    def networks(self, state: State, weights: str) -> dict[str, dict[str, PyTree]]:
        networks = {"autoencoder": self.variables(state, weights)}
        if state.discriminator is not None:
            networks["discriminator"] = state.discriminator.variables
        return networks

    def start_from(self, state: State, networks: dict[str, dict[str, PyTree]]) -> State:
        autoencoder, discriminator = Player.create(networks["autoencoder"], self.optimizer), None
        if self.adversary:
            discriminator = Player.create(networks["discriminator"], self.adversary.optimizer)
        averages = first_averages(self.averages, autoencoder.variables)
        return state.replace(
            autoencoder=autoencoder, discriminator=discriminator, averages=averages
        )

    @staticmethod
    def is_sampled_from(path: str, weights: str) -> bool:
        """Return whether reconstruction reads an array of the state."""
        return Player.is_sampled_from(path, weights, "autoencoder")

    @property
    def animation(self) -> str:
        return "reconstruction.gif" if len(self.space.shape) == 4 else "latent_walk.gif"

    @property
    def num_originals(self) -> int:
        return len(self.data.shown)

    def sampling_inputs(self, sampling: Any) -> tuple[Array]:
        return (self.data.shown,)

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        return (batch[self.space.feature],)

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often a reconstruction evaluates the network: once."""
        return 1

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {"sampler": "reconstruction of held-out examples"}

    def functions(self, state: State, sampling: Any) -> dict[str, Callable]:
        """Return `autoencode(examples)`, `reconstruct(examples)` and `num_codes`.

        `autoencode` takes a batch of the data's type and gives reconstructions of that type,
        latents, and codes or None. `num_codes` is None without a quantizer.
        """
        program = on_mesh(mesh_of(state), _autoencode, self)
        autoencode = functools.partial(program, self.variables(state, sampling.weights))
        quantizer = getattr(self.network, "quantizer", None)
        return {
            "autoencode": autoencode,
            "reconstruct": lambda examples: autoencode(examples)[0],
            "num_codes": quantizer and quantizer.num_codes,
        }

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return diagnostics.alarms(metrics) + [
            sentence
            for sentence in adversarial.alarms(metrics)
            if not sentence.startswith("Not finite")  # `diagnostics.alarms` says so already
        ]


@functools.cache
def _shapes(network: nn.Module, shape: tuple[int, ...]) -> tuple:
    """Return the reconstruction of one example and the terms of the loss, in shapes."""

    def reconstruct_first(key, x):
        variables = network.init(key, x)
        return reconstruct(network, variables["params"], variables, x, key)[0]

    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(reconstruct_first, jax.random.key(0), example)


def reconstruct(network, params, variables, x, key, train=False):
    """Return `(reconstruction, terms), (kept, measured)`.

    `terms` are the bottleneck's terms of the loss and those of the network's `inner_losses`, if it
    has any. `kept` is what the network keeps beside its parameters, and `measured` are metrics. In
    training, batch norms normalize by the batch.
    """
    kept = {name: value for name, value in variables.items() if name != "params"}

    def apply(*args, method, **options):
        has_norms = train and "batch_stats" in kept and method in ("encode", "decode")
        if has_norms:
            options = dict(train=True, mutable=["batch_stats"])
        found = network.apply(kept | {"params": params}, *args, method=method, **options)
        if has_norms:
            found, updated = found
            kept.update(updated)
        return found

    trim = functools.partial(autoencoders.trim, data_shape=x.shape[1:])
    encoded = apply(x, method="encode")
    if isinstance(encoded, tuple):
        z = autoencoding.sample_posterior(key, *encoded)
        nats = autoencoding.divergence(*encoded).sum() / len(x)
        terms = {"divergence": nats / x[0].size}
        if hasattr(network, "inner_losses"):
            terms |= apply(x, z, method="inner_losses")
        return (trim(apply(z, method="decode")), terms), (kept, {})
    if not hasattr(network, "quantize"):
        return (trim(apply(encoded, method="decode")), {}), (kept, {})
    quantized, updated = apply(
        encoded,
        method="quantize",
        train=train,
        mutable=list(kept),
        rngs={"restart": key, "levels": key},
    )
    kept.update(updated)
    counts = diagnostics.codebook_counts(quantized.indices, network.quantizer.num_codes)
    measured = {"codebook/batch_usage": diagnostics.usage(counts)}
    measured |= {"codebook/batch_perplexity": diagnostics.perplexity(counts)}
    y = trim(apply(quantized.latents, method="decode"))
    return (y, quantized.losses), (kept, measured)


def _autoencode(task: Autoencoder, variables, x):
    z = task.encode(variables, task.space.encode(x))
    indices = None
    if hasattr(task.network, "quantize"):
        indices = task.network.apply(variables, z, method="quantize").indices
    return task.space.to_data(task.decode(variables, z)), z, indices


def _frames(x: Float[Array, " batch *shape"]) -> Float[Array, " frames *frame_shape"]:
    """Return the frames of videos as images; images and sounds as they are."""
    return x.reshape(-1, *x.shape[-3:]) if x.ndim == 5 else x


def _sum_over_parts(
    loss: Callable, real: list[Float[Array, "batch ..."]], fake: list[Float[Array, "batch ..."]]
) -> Float[Array, ""]:
    """Return the sum over a discriminator's parts of the mean loss of their logits."""
    means = [loss(r.reshape(-1), f.reshape(-1)).mean() for r, f in zip(real, fake, strict=True)]
    return functools.reduce(operator.add, means)


def _mean_logits(logits: list[Float[Array, "batch ..."]]) -> Float[Array, " batch"]:
    """Return the sum over a discriminator's parts of an example's mean logit."""
    return functools.reduce(operator.add, [part.mean(range(1, part.ndim)) for part in logits])
