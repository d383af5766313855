"""Generative adversarial networks."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.standardized_pixels import check_not_standardized
from experiments.tasks import optimization
from experiments.tasks.optimization import (
    Averages,
    Player,
    first_averages,
    make_averages,
    update_averages,
)
from experiments.tasks.penalties import Penalties
from experiments.tasks.programs import on_mesh
from experiments.tasks.shapes import first_output, traced_shape
from experiments.tasks.transformed_inputs import transformed_images
from experiments.tasks.walks import latent_walk
from genjax import adversarial
from genjax.adversarial import diagnostics, objectives, regularizers
from genjax.data import flip_images
from genjax.devices.mesh import BATCH_AXES
from genjax.diffusion import sample_keys, slerp
from genjax.nn import constrain, forward_mode
from genjax.training import Mean, group_norms, make_optimizer
from genjax.training.sampling import mesh_of
from genjax.training.task import Condition, Space


@flax.struct.dataclass
class State:
    """Both players, and what is carried from step to step beside them.

    Attributes:
        averages: of the generator's variables, by name.
        anchors: the discriminator's running means, for LeCam's penalty.
        path_mean: running mean of path lengths, for StyleGAN2's penalty.
        adaptation: the state of adaptive augmentation, None without any.
    """

    step: Int[Array, ""]
    generator: Player
    discriminator: Player
    averages: dict[str, PyTree]
    anchors: regularizers.Anchors
    path_mean: Float[Array, ""]
    adaptation: PyTree = None

    @property
    def params(self) -> dict[str, PyTree]:
        return {"generator": self.generator.params, "discriminator": self.discriminator.params}


GENERATOR_SIZES = ("resolution", "start", "doublings", "widths", "image_channels", "features")


@dataclass(frozen=True)
class Schedule:
    """The updates that a step makes of discriminator and generator.

    Attributes:
        discriminator: updates of the discriminator, each on its own part of the batch.
        generator: updates of the generator.
        simultaneous: update the generator against the discriminator before the step, not after its
            updates.
    """

    discriminator: int
    generator: int
    simultaneous: bool

    @classmethod
    def from_config(cls, config: Any) -> "Schedule":
        """Return the updates of a config; raise ValueError if they do not divide its batch."""
        updates = cls(**config.updates)
        fewest = min(updates.discriminator, updates.generator)
        if fewest < 1 or config.batch_size % updates.discriminator:
            raise ValueError(
                f"config.updates must be positive, and config.batch_size {config.batch_size} "
                f"divide into config.updates.discriminator {updates.discriminator} parts"
            )
        return updates


@dataclass(frozen=True)
class GAN:
    """Generator and discriminator, each with its own optimizer, class-conditional or not.

    Generated examples have the classes of the real ones beside them.
    """

    generator: nn.Module
    discriminator: nn.Module
    space: Space
    condition: Condition
    objective: adversarial.Objective
    penalties: Penalties
    augmentations: tuple[Callable, ...]
    adaptive: Any  # kinds.AdaptiveAugmentation, or None
    blur: adversarial.FadingBlur | None
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation]
    schedules: tuple[optax.Schedule, optax.Schedule]
    averages: Averages
    updates: Schedule
    batch_size: int
    flip: bool

    animation: ClassVar[str] = "latent_walk.gif"
    discriminator_kind: ClassVar[kinds.Kind] = kinds.DISCRIMINATOR

    @classmethod
    def from_config(cls, config: Any) -> "GAN":
        """Return the task of a config.

        Raises:
            ValueError: a part does not exist or does not fit the others, or the batch does not
                divide into its updates' parts.
        """
        task = cls(**cls.fields(config))
        task._check_networks()
        task._check_augmentations()
        return task

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config; raise ValueError as of `from_config`."""
        condition = kinds.CONDITION.bind(config.condition, "condition")
        given = condition.network_fields
        if "num_classes" not in given:
            raise ValueError(
                f"config.condition.name is {config.condition.name}, which no network of a GAN "
                "takes; take Classes or Unconditional"
            )
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        check_not_standardized(space, "a GAN")
        generator = kinds.GENERATOR.bind(config.model.generator, "model.generator", **given)
        penalties = Penalties.from_config(config.regularizers, generator)
        updates = Schedule.from_config(config)
        adaptive, blur = map(config.get, ("adaptive_augmentation", "blur"))  # None in older runs
        if blur and set(blur) != {"sigma", "images"}:
            raise ValueError(
                f"config.blur has {', '.join(blur)}: set both sigma and images, or neither"
            )
        optimization.check_players(config, "a GAN, whose networks see")
        players = ("generator", "discriminator")
        steps = {player: config.num_steps * config.updates[player] for player in players}
        made = []
        for player in players:
            options = dict(num_steps=steps[player], field=f"config.optimizer.{player}")
            made.append(make_optimizer(**config.optimizer[player], **options))
        optimizers, schedules = zip(*made, strict=True)
        return dict(
            generator=generator,
            discriminator=cls.discriminator_kind.bind(
                config.model.discriminator, "model.discriminator", **given
            ),
            space=space,
            condition=condition,
            objective=kinds.OBJECTIVE.find(config.objective, "objective"),
            penalties=penalties,
            augmentations=tuple(
                kinds.AUGMENTATION.find(name, "augmentations") for name in config.augmentations
            ),
            adaptive=kinds.ADAPTIVE_AUGMENTATION.bind(adaptive, "adaptive_augmentation")
            if adaptive
            else None,
            blur=adversarial.FadingBlur(**blur) if blur else None,
            optimizers=optimizers,
            schedules=schedules,
            averages=make_averages(config),
            updates=updates,
            batch_size=config.batch_size // updates.discriminator,
            flip=config.data.flip,
        )

    def _check_networks(self) -> None:
        """Raise ValueError if the generator makes, or the discriminator takes, another shape."""
        shape = tuple(self.space.shape)
        keys = {name: jax.random.key(0) for name in ("params", "noise")}
        labels = jax.ShapeDtypeStruct((1,), jnp.int32) if self.conditional else None
        z = jax.ShapeDtypeStruct((1, self.generator.latent_size), jnp.float32)
        examples = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        generate, judge = map(first_output, (self.generator, self.discriminator))
        made = traced_shape(
            self.generator, "model.generator", f"z {list(z.shape)}", generate, keys, z, labels
        )[1:]
        if made != shape:
            sizes = [
                f"--config.model.generator.{each}"
                for each in GENERATOR_SIZES
                if hasattr(self.generator, each)
            ]
            sides = ",".join(map(str, made))
            raise ValueError(
                f"config.model.generator makes {list(made)}, and config.data.image_shape is "
                f"{list(shape)}: set --config.data.image_shape={sides} and, for images of another "
                f"size, --config.data.resize=True; or change {', '.join(sizes) or 'the generator'}"
            )
        inputs = jax.random.key(0), examples, labels
        called_with = f"config.data.image_shape {list(shape)}"
        traced_shape(self.discriminator, "model.discriminator", called_with, judge, *inputs)

    def _check_augmentations(self) -> None:
        """Raise ValueError if the discriminator's images cannot be changed as the config says."""
        unused = dict.fromkeys(("generator", "discriminator", "averages", "anchors", "path_mean"))
        adaptation = self.adaptive and self.adaptive.init()
        state = State(step=jnp.int32(0), adaptation=adaptation, **unused)
        x = jax.ShapeDtypeStruct((1, *self.space.shape), jnp.float32)
        try:
            jax.eval_shape(functools.partial(self._augment, state), jax.random.key(0), x)
        except Exception as error:  # whatever an augmentation of the user's own raises
            raise ValueError(
                "leave out config.augmentations, config.adaptive_augmentation and config.blur, one "
                f"of which cannot change examples of shape {list(self.space.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    @property
    def network(self) -> nn.Module:
        return self.generator

    @property
    def conditional(self) -> bool:
        return self.condition.num_classes > 0

    def init(self, key: Key[Array, ""]) -> State:
        generator_key, discriminator_key, noise_key = jax.random.split(key, 3)
        labels = jnp.zeros(1, int) if self.conditional else None
        rngs = {"params": generator_key, "noise": noise_key}
        inputs = [
            (rngs, jnp.zeros((1, self.generator.latent_size)), labels),
            (discriminator_key, jnp.zeros((1, *self.space.shape)), labels),
        ]
        networks = zip((self.generator, self.discriminator), self.optimizers, inputs, strict=True)
        players = [
            Player.create(network.init(*arguments), optimizer)
            for network, optimizer, arguments in networks
        ]
        return State(
            step=jnp.int32(0),
            generator=players[0],
            discriminator=players[1],
            averages=first_averages(self.averages, players[0].variables),
            anchors=regularizers.Anchors(jnp.zeros(()), jnp.zeros(())),
            path_mean=jnp.zeros(()),
            adaptation=self.adaptive and self.adaptive.init(),
        )

    def frozen(self) -> tuple:
        """Return what the space loads."""
        frozen = self.space.frozen()
        return (frozen,) if frozen else ()

    def abstract_frozen(self) -> tuple:
        """Return what `frozen` would load, in shapes."""
        frozen = self.space.abstract_frozen()
        return (frozen,) if frozen else ()

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree = None
    ) -> tuple[State, dict[str, Float[Array, ""] | Mean]]:
        with forward_mode(True):  # penalties on gradients are differentiated twice
            return self._update(state, batch, key, frozen)

    def _update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree
    ) -> tuple[State, dict[str, Float[Array, ""] | Mean]]:
        images = batch[self.space.feature]
        if self.flip and images.dtype == jnp.uint8:
            images = flip_images(jax.random.fold_in(key, 2), images)
        images = self.space.encode(images, frozen)
        labels = self.condition.of_batch(batch) if self.conditional else None

        def part(i):  # strided, as in gradient accumulation: no example leaves its device
            strided = lambda a: constrain(a[i :: self.updates.discriminator], BATCH_AXES)
            return jax.tree.map(strided, images), jax.tree.map(strided, labels)

        discriminator_key, generator_key = jax.random.split(key)

        # Unrolled: inside a loop XLA's CPU back end takes five times as long for convolutions.
        after, of_discriminator, of_generator = state, [], []
        for i, update_key in enumerate(
            jax.random.split(discriminator_key, self.updates.discriminator)
        ):
            after, metrics = self._update_discriminator(after, *part(i), update_key)
            of_discriminator.append(metrics)
        opponent = state.discriminator if self.updates.simultaneous else after.discriminator
        for i, update_key in enumerate(jax.random.split(generator_key, self.updates.generator)):
            strided = part(i % self.updates.discriminator)
            after, metrics = self._update_generator(after, opponent, *strided, update_key)
            of_generator.append(metrics)
        add_up = lambda metrics: jax.tree.map(lambda *each: sum(each), *metrics)
        metrics = add_up(of_discriminator) | add_up(of_generator)
        averages = update_averages(
            self.averages, state.averages, after.generator.variables, state.step
        )
        after = after.replace(step=state.step + 1, averages=averages)
        if self.adaptive:
            signs = metrics["overfitting/r_t"]
            adaptation = self.adaptive.update(
                state.adaptation, state.step, signs.total / signs.count, len(images)
            )
            after = after.replace(adaptation=adaptation)
            metrics["augmentation/probability"] = state.adaptation.probability
        if self.blur:
            metrics["augmentation/blur"] = self.blur.sigma_at(self._seen(state))
        step, updates = state.step, self.updates
        metrics["learning_rate/generator"] = self.schedules[0](step * updates.generator)
        metrics["learning_rate/discriminator"] = self.schedules[1](step * updates.discriminator)
        return after, metrics

    def _update_discriminator(self, state, images, labels, key):
        player, anchors, step = state.discriminator, state.anchors, state.step
        latent_key, augment_key, penalty_key = jax.random.split(key, 3)
        fakes, _ = self._generate(state.generator, latent_key, labels, len(images))
        real_key, fake_key = jax.random.split(augment_key)
        augment = functools.partial(self._augment, state)

        # Real and generated examples apart, to see what reaches the discriminator through the
        # generator.
        judge = lambda key, x: (
            lambda params, kept: self._judge({"params": params, **kept}, augment(key, x), labels)
        )
        real, pull_real, kept = jax.vjp(
            lambda params: judge(real_key, images)(params, player.kept), player.params, has_aux=True
        )
        fake, pull_fake, kept = jax.vjp(
            lambda params: judge(fake_key, fakes)(params, kept), player.params, has_aux=True
        )

        def loss_of(real, fake):
            loss = self.objective.discriminator(real, fake).mean()
            added = self.penalties.added(
                step, {"lecam": lambda: adversarial.lecam(real, fake, anchors)}
            )
            return loss + sum(term for term, _ in added.values()), (loss, added)

        def penalties_of(params):
            # Penalties see the images as they were judged.
            critic = lambda key: lambda x: judge(jax.random.clone(key), x)(params, player.kept)[0]
            penalties = {
                "r1": lambda: adversarial.gradient_penalty(critic(real_key), images),
                "r2": lambda: adversarial.gradient_penalty(critic(fake_key), fakes),
                "interpolated": lambda: adversarial.interpolated_gradient_penalty(
                    penalty_key, critic(real_key), images, fakes
                ),
            }
            added = self.penalties.added(step, penalties)
            return sum((term for term, _ in added.values()), jnp.zeros(())), added

        of_logits, (loss, added) = jax.grad(loss_of, (0, 1), has_aux=True)(real, fake)
        (by_real,), (by_fake,) = pull_real(of_logits[0]), pull_fake(of_logits[1])
        of_penalties, more = jax.grad(penalties_of, has_aux=True)(player.params)
        gradients = jax.tree.map(lambda *parts: sum(parts), by_real, by_fake, of_penalties)
        added |= more
        r_t = jnp.sign(real - diagnostics.boundary(self.objective, real, fake)).mean()
        metrics = (
            {"loss/discriminator": loss, "value": adversarial.value(real, fake).mean()}
            | diagnostics.accuracies(self.objective, real, fake)
            | {"logit/real": real.mean(), "logit/fake": fake.mean(), "overfitting/r_t": r_t}
            | {"norm/gradient_of_discriminator_by_generated": group_norms("", by_fake)["/total"]}
        )
        player, norms = self._apply(player, 1, "discriminator", gradients, kept)
        anchors = regularizers.update_anchors(anchors, real, fake)
        state = state.replace(discriminator=player, anchors=anchors)
        return state, means(metrics | norms) | self.penalties.metrics(added)

    def _update_generator(self, state, opponent, images, labels, key):
        player = state.generator
        latent_key, augment_key, path_key = jax.random.split(key, 3)
        keys = jax.random.split(augment_key, 2)
        augment = functools.partial(self._augment, state)
        judge = lambda key, x: self._judge(opponent.variables, augment(key, x), labels)[0]
        real = judge(keys[0], images)  # not computed where the objective leaves it out

        def loss_of(fakes):
            fake = judge(keys[1], fakes)
            return self.objective.generator(real, fake).mean(), fake

        def generate(params):
            return self._generate(player.replace(params=params), latent_key, labels, len(images))

        # In two parts, to see what reaches the images through the discriminator.
        fakes, pull_back, kept = jax.vjp(generate, player.params, has_aux=True)
        (loss, fake), of_images = jax.value_and_grad(loss_of, has_aux=True)(fakes)
        (gradients,) = pull_back(of_images)
        of_penalties, added, path_mean = self._generator_penalties(
            player, state.step, state.path_mean, labels, path_key, len(images)
        )
        gradients = jax.tree.map(jnp.add, gradients, of_penalties)
        metrics = {
            "loss/generator": loss,
            "slope/generator": objectives.generator_slope(self.objective, real, fake).mean(),
            # of each image's own loss, which the mean divides by their number
            "norm/gradient_of_images": jnp.sqrt(
                jnp.square(of_images).sum(range(1, fakes.ndim))
            ).mean()
            * len(fakes),
        }
        player, norms = self._apply(player, 0, "generator", gradients, kept)
        state = state.replace(generator=player, path_mean=path_mean)
        return state, means(metrics | norms) | self.penalties.metrics(added)

    def _generator_penalties(self, player, step, path_mean, labels, key, count):
        """Return the gradients of the generator's penalties, what they add, and the path mean."""
        keys = jax.random.split(key, 3)

        def path_penalty(params):
            call = functools.partial(
                self.generator.apply,
                player.variables | {"params": params},
                train=True,
                rngs={"noise": keys[0]},
            )
            w = call(self._latents(keys[1], count), labels, method="map")
            synthesize = functools.partial(call, method="synthesize")
            penalties, mean = adversarial.path_length(keys[2], synthesize, w, path_mean)
            return penalties.mean(), mean

        def total(params):
            added = self.penalties.added(
                step, {"orthogonality": lambda: adversarial.orthogonality(params)}
            )
            mean = path_mean
            if "path_length" in self.penalties:
                *added["path_length"], mean = self.penalties.lazily(
                    "path_length", step, functools.partial(path_penalty, params), path_mean
                )
            return sum((term for term, _ in added.values()), jnp.zeros(())), (added, mean)

        gradients, (added, path_mean) = jax.grad(total, has_aux=True)(player.params)
        return gradients, added, path_mean

    def _apply(self, player, index, name, gradients, kept):
        after, updates = player.step(self.optimizers[index], gradients, kept)
        trees = (("gradient", gradients), ("parameter", after.params), ("update", updates))
        norms = {f"norm/{what}_of_{name}": group_norms("", tree)["/total"] for what, tree in trees}
        return after, norms

    def _latents(self, key, count):
        return jax.random.normal(key, (count, self.generator.latent_size))

    def _generate(self, player, key, labels, count):
        """Return images in training, and what the generator keeps after them."""
        latent_key, noise_key = jax.random.split(key)
        images, kept = self.generator.apply(
            player.variables,
            self._latents(latent_key, count),
            labels,
            train=True,
            mutable=list(player.kept),
            rngs={"noise": noise_key},
        )
        return images, dict(kept)

    def _augment(self, state, key, images):
        """Return the images as the discriminator sees them in training."""
        if self.blur:
            images = self.blur(images, self._seen(state))
        augmentations = list(self.augmentations)
        if self.adaptive:
            augmentations.append(lambda key, x: self.adaptive(key, x, state.adaptation.probability))
        return adversarial.augment(jax.random.split(key, len(images)), images, augmentations)

    def _seen(self, state):
        """Return the number of real images before a step."""
        return state.step.astype(jnp.float32) * self.batch_size * self.updates.discriminator

    def _judge(self, variables, images, labels):
        """Return logits in training, and what the discriminator keeps after them."""
        kept = [each for each in variables if each != "params"]
        logits, kept = self.discriminator.apply(variables, images, labels, train=True, mutable=kept)
        return logits, dict(kept)

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        truncation: float | Float[Array, ""],
        frozen: PyTree = None,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, " batch *shape"] | Float[Array, " frames batch *shape"]:
        """Return samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Args:
            weights: "params", those of the last step, or the name of one of the averages.
            truncation: of a generator with styles, ψ; others shrink z itself by it.
            frozen: what `frozen` loads, if anything.
            trajectory: a walk through Z (by `slerp`) that ends in the samples.
        """
        there = self.variables(state, weights)
        labels = labels if self.conditional else None
        split = jax.vmap(lambda key: tuple(jax.random.split(key)))
        latent_keys, noise_keys = split(sample_keys(key, indices))
        latents = jax.vmap(lambda key: jax.random.normal(key, (2, self.generator.latent_size)))(
            latent_keys
        )

        def synthesize(w, key):
            """Return one image with noise of its own, which carries what training put into it."""
            rngs = {"noise": key}
            return self.generator.apply(there, w[None], train=True, rngs=rngs, method="synthesize")[
                0
            ]

        def images(z):
            if hasattr(self.generator, "map"):
                w = self.generator.apply(there, z, labels, truncation=truncation, method="map")
                return self.space.decode(jax.vmap(synthesize)(w, noise_keys), frozen)
            return self.space.decode(self.generator.apply(there, truncation * z, labels), frozen)

        if not trajectory:
            return images(latents[:, 0])
        return latent_walk(images, latents.swapaxes(0, 1)[::-1], slerp)  # the samples last

    def variables(self, state: State, weights: str) -> dict[str, PyTree]:
        return {"params": state.generator.variables, **state.averages}[weights]

    def networks(self, state: State, weights: str) -> dict[str, dict[str, PyTree]]:
        return {
            "generator": self.variables(state, weights),
            "discriminator": state.discriminator.variables,
        }

    def start_from(self, state: State, networks: dict[str, dict[str, PyTree]]) -> State:
        generator = Player.create(networks["generator"], self.optimizers[0])
        discriminator = Player.create(networks["discriminator"], self.optimizers[1])
        averages = first_averages(self.averages, generator.variables)
        return state.replace(generator=generator, discriminator=discriminator, averages=averages)

    @staticmethod
    def is_sampled_from(path: str, weights: str) -> bool:
        """Return whether sampling or evaluating the discriminator reads an array of the state."""
        return Player.is_sampled_from(path, weights, "generator")

    def sampling_inputs(self, sampling: Any) -> tuple:
        return jnp.float32(sampling.truncation), *self.frozen()

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        return jnp.float32(sampling.truncation), *frozen

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often sampling evaluates the generator: once."""
        return 1

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {"truncation": sampling.truncation}

    def functions(self, state: State, sampling: Any) -> dict[str, Callable]:
        """Return `logits(examples, labels)` of the discriminator, and the game's `objective`.

        `logits` takes floats, in batches as in training, since a discriminator may look at all of a
        batch. It leaves out the examples that do not fill a batch, and repeats those of fewer than
        one batch. For a generator that takes a transform of its input there is `transformed`
        (`transformed_images`). Nothing is returned of networks that see latents, since evaluators
        have images.
        """
        if self.space.autoencoder:
            return {}
        mesh = mesh_of(state)

        def logits(examples: np.ndarray, labels: np.ndarray) -> np.ndarray:
            size = self.batch_size
            whole = max(len(examples) // size, 1) * size
            batches = (np.arange(whole) % len(examples)).reshape(-1, size)
            judge = on_mesh(mesh, nn.Module.apply, self.discriminator)
            variables = state.discriminator.variables
            given = lambda rows: labels[rows] if self.conditional else None
            judged = [judge(variables, examples[rows], given(rows)) for rows in batches]
            return np.concatenate(judged)[: len(examples)]

        functions = {"logits": logits, "objective": self.objective}
        if getattr(self.generator, "takes_transform", False):
            variables = self.variables(state, sampling.weights)
            functions["transformed"] = transformed_images(self.generator, variables, sampling, mesh)
        return functions

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return diagnostics.alarms(metrics)


def means(metrics):
    """Return metrics as `Mean`s, so that sums over updates are means over updates."""
    return {name: Mean(value, jnp.ones(())) for name, value in metrics.items()}
