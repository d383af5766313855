"""Few-step students that match their teacher's distribution, against a critic that learns them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from experiments.configuration import kinds
from experiments.tasks import optimization
from experiments.tasks.distillation import Distillation
from experiments.tasks.methods.matching import FAKE, HEAD, Game
from experiments.tasks.optimization import Player
from genjax.diffusion.targets import network_inputs
from genjax.models.gans.feature_heads import FeatureHeads
from genjax.training import Mean, at_rounded, group_norms, make_optimizer, value_and_gradient


@flax.struct.dataclass
class State(optimization.State):
    """The state of a student, and its critic.

    Attributes:
        critic: its parameters are those of the fake network, "fake", and of the discriminator's
            heads, "head", as far as the method has them.
    """

    critic: Player


@dataclass(frozen=True, kw_only=True)
class Matching(Distillation):
    """A student and its critic, each with its own optimizer: DMD, DMD2, LADD and rCM.

    The methods are those of `tasks.methods.matching`. A step makes `critic_updates` updates of the
    critic, each with noise and samples of its own on the whole batch, then one of the student.

    Attributes:
        heads: the discriminator on the features of a diffusion network's blocks.
        critic_optimizer, critic_schedule: of fake network and heads together.
        grid: `(process, num_steps) -> times` of the sampler that the student trains for.
    """

    heads: nn.Module
    critic_optimizer: optax.GradientTransformation
    critic_schedule: optax.Schedule
    grid: Callable

    trained_with = ("grid",)
    config_fields = dict(optimizer=dict(student={}, critic={}))

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config; raise ValueError as `Distillation.fields`."""
        alone = copy.deepcopy(config)
        alone.optimizer = config.optimizer.student
        fields = super().fields(alone)
        optimizer, schedule = make_optimizer(
            **config.optimizer.critic,
            num_steps=config.num_steps * fields["method"].critic_updates,
            field="config.optimizer.critic",
        )
        return fields | dict(
            heads=FeatureHeads(),
            critic_optimizer=optimizer,
            critic_schedule=schedule,
            grid=kinds.GRID.bind(config.sampling.grid, "sampling.grid"),
        )

    def init(self, key: Key[Array, ""]) -> State:
        student, parts = super().init(key), {}
        if HEAD in self.method.critic:
            features = jax.eval_shape(self._first_features, student.params, *self.abstract_frozen())
            features = jnp.zeros(features.shape, features.dtype)
            parts[HEAD] = self.heads.init(jax.random.fold_in(key, 1), features)["params"]
        return self._with_critic(student, parts)

    def start_from(self, state: State, networks: dict[str, dict[str, PyTree]]) -> State:
        """Return a first state with a student, and a fake network, of these parameters."""
        student = super().start_from(state, networks)
        heads = {name: state.critic.params[name] for name in self.method.critic if name == HEAD}
        return self._with_critic(student, heads)

    def _with_critic(self, student: optimization.State, parts: dict[str, PyTree]) -> State:
        """Return a first state whose fake network has the student's parameters."""
        if FAKE in self.method.critic:
            parts = parts | {FAKE: jax.tree.map(jnp.copy, student.params)}
        critic = Player.create({"params": parts}, self.critic_optimizer)
        return State(**vars(student), critic=critic)

    @staticmethod
    def is_sampled_from(path: str, weights: str) -> bool:
        return not path.startswith("critic/") and optimization.is_sampled_from(path, weights)

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree = None
    ) -> tuple[State, dict[str, Float[Array, ""] | Mean]]:
        student_key, critic_key = jax.random.split(key)

        def one(critic, key):
            return self._update_critic(state.replace(critic=critic), batch, key, frozen)

        keys = jax.random.split(critic_key, self.method.critic_updates)
        critic, of_critic = jax.lax.scan(one, state.critic, keys)
        rate = self.critic_schedule(state.step * self.method.critic_updates)
        state, metrics = super().update(state.replace(critic=critic), batch, student_key, frozen)
        of_critic = jax.tree.map(jnp.mean, of_critic)
        return state, metrics | of_critic | {"learning_rate/critic": rate}

    def _update_critic(self, state, batch, key, frozen):
        def loss(params, batch, key):
            other = state.replace(critic=state.critic.replace(params=params))
            game, x, key = self._student(state.params, batch, key, other, frozen)
            return self.method.critic_loss(key, game, x).mean(), ()

        gradient_of = value_and_gradient(
            at_rounded(loss, self.optimization.params_dtype), self.optimization.accumulation_steps
        )
        (value, _), gradients = gradient_of(state.critic.params, batch, key)
        critic, _ = state.critic.step(self.critic_optimizer, gradients, {})
        norm = group_norms("", gradients)["/total"]
        return critic, {"loss/critic": value, "norm/gradient_of_critic": norm}

    def _student(self, params, batch, key, state, frozen):
        student, x, key = super()._student(params, batch, key, state, frozen)
        critic, fake, discriminator = state.critic.params, None, None
        if FAKE in critic:
            fake = self._apply(critic[FAKE], frozen)
        if HEAD in critic:
            below = fake or self.teacher.network(frozen["teacher"])

            def discriminator(x_t, t, condition):
                features = block_features(below, *network_inputs(self.process, x_t, t), condition)
                return self.heads.apply({"params": critic[HEAD]}, features)

        return Game(**vars(student), fake=fake, discriminator=discriminator, grid=self.grid), x, key

    def _first_features(self, params: PyTree, frozen: PyTree) -> Array:
        """Return the features of one example, for the shape of the heads' parameters."""
        x, t = jnp.zeros((1, *self.space.shape)), jnp.zeros(1)
        fake = FAKE in self.method.critic
        below = self._apply(params, frozen) if fake else self.teacher.network(frozen["teacher"])
        return block_features(below, x, t, self.condition.example())


def block_features(
    apply: Callable, x: Array, t: Array, condition: PyTree
) -> Float[Array, "depth batch length features"]:
    """Return the tokens after each block of a transformer, whose scanned blocks are "blocks".

    Raises:
        ValueError: the network has no module of this name.
    """
    _, kept = apply(
        x,
        t,
        condition,
        capture_intermediates=lambda module, _: module.name == "blocks",
        mutable=["intermediates"],
    )
    if "blocks" not in kept.get("intermediates", {}):
        raise ValueError(
            "the discriminator judges by the outputs of a network's `blocks`, and config.model has "
            "none; take a transformer such as DiT, or a method without a discriminator"
        )
    ((features, _),) = kept["intermediates"]["blocks"]["__call__"]
    return features
