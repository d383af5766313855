"""Bidirectional generative adversarial networks: a generator and its inverse, trained together."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.autoencoders import on_host
from experiments.tasks.adversarial import GAN, State, means
from experiments.tasks.latent_generators import Inverses, LatentGenerator
from experiments.tasks.optimization import Player, first_averages
from experiments.tasks.shapes import first_output, traced_shape
from genjax import adversarial
from genjax.adversarial import diagnostics, objectives

JOINT_PENALTIES = ("r1", "r2")
NETWORKS = ("generator", "encoder")


@dataclass(frozen=True)
class BidirectionalGAN(GAN):
    """A GAN whose discriminator tells pairs (x, E(x)) from pairs (G(z), z).

    Generator and encoder are one player, with one optimizer and one average. Its parameters are
    {"generator": …, "encoder": …}. See `genjax.adversarial.inverse` for the losses.
    """

    encoder: nn.Module

    discriminator_kind: ClassVar[kinds.Kind] = kinds.JOINT_DISCRIMINATOR

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        fields = super().fields(config)
        if others := sorted(set(config.regularizers) - set(JOINT_PENALTIES)):
            raise ValueError(
                f"config.regularizers has {others[0]!r}; a bidirectional GAN takes "
                f"{' and '.join(JOINT_PENALTIES)}"
            )
        for name, part in (("adaptive_augmentation", "adaptive"), ("blur", "blur")):
            if fields[part]:
                raise ValueError(
                    f"config.{name} is set, and a bidirectional GAN takes none; "
                    "config.augmentations change the images of its pairs"
                )
        given = fields["condition"].network_fields
        features = fields["generator"].latent_size
        encoder = kinds.ENCODER.bind(
            config.model.encoder, "model.encoder", features=features, **given
        )
        return fields | dict(encoder=encoder)

    def _check_networks(self) -> None:
        """Raise ValueError if the generator makes, or the others take, another shape."""
        keys = {name: jax.random.key(0) for name in ("params", "noise")}
        labels = jax.ShapeDtypeStruct((1,), jnp.int32) if self.conditional else None
        z = jax.ShapeDtypeStruct((1, self.generator.latent_size), jnp.float32)
        x = jax.ShapeDtypeStruct((1, *self.space.shape), jnp.float32)
        given = f"config.data.image_shape {list(self.space.shape)}"
        inputs = {"generator": (z, labels), "encoder": (x, labels), "discriminator": (x, z, labels)}
        made = {}
        for name, arguments in inputs.items():
            network, called_with = getattr(self, name), (keys, *arguments)
            apply = first_output(network)
            made[name] = traced_shape(network, f"model.{name}", given, apply, *called_with)
        if made["generator"] != x.shape:
            raise ValueError(
                f"config.model.generator makes {list(made['generator'][1:])}, and {given}: set the "
                "same size for both"
            )

    def init(self, key: Key[Array, ""]) -> State:
        keys = jax.random.split(key, 5)
        labels = jnp.zeros(1, int) if self.conditional else None
        x, z = jnp.zeros((1, *self.space.shape)), jnp.zeros((1, self.generator.latent_size))
        generator = self.generator.init({"params": keys[0], "noise": keys[3]}, z, labels)
        encoder = self.encoder.init({"params": keys[1], "noise": keys[4]}, x, labels)
        player = Player.create(_join(generator, encoder), self.optimizers[0])
        return State(
            step=jnp.int32(0),
            generator=player,
            discriminator=Player.create(
                self.discriminator.init(keys[2], x, z, labels), self.optimizers[1]
            ),
            averages=first_averages(self.averages, player.variables),
            anchors=adversarial.Anchors(jnp.zeros(()), jnp.zeros(())),  # of LeCam, unused
            path_mean=jnp.zeros(()),  # of path lengths, unused
        )

    def _update_discriminator(self, state, images, labels, key):
        player, generator = state.discriminator, state.generator
        pair_key, *keys = jax.random.split(key, 3)
        real_pairs, fake_pairs, _ = self._pairs(
            generator.params, generator.kept, pair_key, images, labels
        )

        def loss_of(params):
            score = functools.partial(self._scores, params)
            real, kept = score(player.kept, keys[0], real_pairs, labels)
            fake, kept = score(kept, keys[1], fake_pairs, labels)
            loss = adversarial.joint_discriminator_loss(self.objective, real, fake).mean()

            def penalty(key, pairs):
                key = jax.random.clone(key)  # a penalty sees the pairs as they were scored
                total = lambda pairs: score(player.kept, key, pairs, labels)[0].sum(axis=1)
                return adversarial.gradient_penalty(total, pairs)

            penalties = {
                "r1": lambda: penalty(keys[0], real_pairs),
                "r2": lambda: penalty(keys[1], fake_pairs),
            }
            added = self.penalties.added(state.step, penalties)
            scores = real.ravel(), fake.ravel()  # the objective's boundary is of each, not of sums
            return loss + sum(term for term, _ in added.values()), (loss, scores, kept, added)

        gradients, (loss, (real, fake), kept, added) = jax.grad(loss_of, has_aux=True)(
            player.params
        )
        metrics = (
            {"loss/discriminator": loss, "value": adversarial.value(real, fake).mean()}
            | diagnostics.accuracies(self.objective, real, fake)
            | {"logit/real": real.mean(), "logit/fake": fake.mean()}
        )
        player, norms = self._apply(player, 1, "discriminator", gradients, kept)
        metrics = means(metrics | norms) | self.penalties.metrics(added)
        return state.replace(discriminator=player), metrics

    def _update_generator(self, state, opponent, images, labels, key):
        player = state.generator
        pair_key, *keys = jax.random.split(key, 3)

        def loss_of(params):
            *pairs, kept = self._pairs(params, player.kept, pair_key, images, labels)
            real, fake = (
                self._scores(opponent.params, opponent.kept, key, each, labels)[0]
                for key, each in zip(keys, pairs, strict=True)
            )
            loss = adversarial.joint_generator_loss(self.objective, real, fake).mean()
            return loss, (real.ravel(), fake.ravel(), kept)

        (loss, (real, fake, kept)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            player.params
        )
        slope = objectives.generator_slope(self.objective, real, fake).mean()
        player, norms = self._apply(player, 0, "generator", gradients, kept)
        metrics = means({"loss/generator": loss, "slope/generator": slope} | norms)
        return state.replace(generator=player), metrics

    def _pairs(self, params, kept, key, images, labels):
        """Return pairs (x, E(x)), pairs (G(z), z), and what the generator keeps after them."""
        latent_key, *keys = jax.random.split(key, 3)
        z = self._latents(latent_key, len(images))
        encoded = self.encoder.apply(
            {"params": params["encoder"]}, images, labels, train=True, rngs={"noise": keys[0]}
        )
        generated, kept = self.generator.apply(
            {"params": params["generator"], **kept},
            z,
            labels,
            train=True,
            mutable=list(kept),
            rngs={"noise": keys[1]},
        )
        return (images, encoded), (generated, z), dict(kept)

    def _scores(self, params, kept, key, pairs, labels):
        """Return scores of pairs with augmented images, and what the discriminator keeps."""
        images, z = pairs
        images = adversarial.augment(jax.random.split(key, len(images)), images, self.augmentations)
        scores, kept = self.discriminator.apply(
            {"params": params, **kept}, images, z, labels, train=True, mutable=list(kept)
        )
        return scores, dict(kept)

    def _both(self, state: State, weights: str) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """Return the variables of generator and encoder."""
        variables = dict({"params": state.generator.variables, **state.averages}[weights])
        params = variables.pop("params")
        return {"params": params["generator"], **variables}, {"params": params["encoder"]}

    def variables(self, state: State, weights: str) -> dict[str, PyTree]:
        return self._both(state, weights)[0]

    def networks(self, state: State, weights: str) -> dict[str, dict[str, PyTree]]:
        both = dict(zip(NETWORKS, self._both(state, weights), strict=True))
        return both | {"discriminator": state.discriminator.variables}

    def start_from(self, state: State, networks: dict[str, dict[str, PyTree]]) -> State:
        player = _join(*(networks[name] for name in NETWORKS))
        return super().start_from(state, networks | {"generator": player})

    def functions(self, state: State, sampling: Any) -> dict[str, Callable]:
        """Return `inverses`, which the evaluator of inversions reads; nothing of latents."""
        if self.space.autoencoder:
            return {}
        generator = LatentGenerator(self.generator)
        encoders = {"joint training": functools.partial(self.encode_jointly, generator)}
        both = lambda: dict(zip(NETWORKS, self._both(state, sampling.weights), strict=True))
        load = lambda: on_host(both())
        return {"inverses": Inverses(generator, self.conditional, encoders, load)}

    def encode_jointly(self, generator, variables, images, labels):
        """Return the latents that the encoder gives, with variables of generator and encoder."""
        z = self.encoder.apply(variables["encoder"], images, labels)
        return generator.from_z(variables["generator"], z, labels)


def _join(generator: dict[str, PyTree], encoder: dict[str, PyTree]) -> dict[str, PyTree]:
    """Return the variables of the one player that generator and encoder are."""
    kept = {name: value for name, value in generator.items() if name != "params"}
    params = dict(zip(NETWORKS, (generator["params"], encoder["params"]), strict=True))
    return {"params": params, **kept}
