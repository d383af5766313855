"""Masked autoregression: continuous tokens in a random order, each drawn by diffusion (MAR)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.datasets import condition_of
from experiments.tasks import diffusion as continuous
from experiments.tasks.diffusion import Diffusion, check_no_interval, evaluation_times
from experiments.tasks.optimization import Optimization, State
from experiments.tasks.shapes import check_one_grid, traced_shape
from genjax import autoregression, diffusion
from genjax.nn import patchify, unpatchify

Tokens = Float[Array, "batch length channels"]


@dataclass(frozen=True)
class Objective(continuous.Objective):
    """The diffusion loss of masked tokens, given the others.

    Attributes:
        repeats: times and noises drawn for each token.
    """

    repeats: int = 4

    @classmethod
    def from_config(cls, config: Any) -> "Objective":
        return replace(super().from_config(config), repeats=config.repeats)

    def __call__(
        self, key: Key[Array, ""], apply: Callable, x: Tokens, condition: PyTree, null: PyTree
    ) -> tuple[Float[Array, ""], tuple[tuple, tuple]]:
        """Return the mean loss of the masked tokens, and no parts of it."""
        dropout_key, loss_key = jax.random.split(key)
        losses = autoregression.mar_loss(
            loss_key,
            functools.partial(apply, method="states"),
            functools.partial(apply, method="denoise"),
            x,
            diffusion.drop_conditioning(dropout_key, condition, null, self.dropout_rate),
            loss=self.losses,
            repeats=self.repeats,
        )
        return losses.mean(), ((), ())

    def time_bins(self) -> list[str]:
        return []


@dataclass(frozen=True)
class MaskedAutoregression(Diffusion):
    """A network of the tokens of a space, whose distribution given others is a diffusion model's.

    Tokens are patches of what the space holds. `sampling.num_steps` steps reveal them all, as many
    in each as `sampling.schedule` says. In each step the sampler takes `sampling.token_steps` to
    draw the tokens.

    Attributes:
        patch_size: side of a token's patch.
        num_steps: steps in which all tokens are revealed.
        schedule: the share of tokens that stay masked, as a function of the share of the steps.
    """

    patch_size: int = 1
    num_steps: int = 1
    schedule: Callable = autoregression.masked.cosine

    animation = "decoding.gif"
    built_with = ("sampler", "num_steps", "schedule")
    optional_sampling = ()

    @classmethod
    def from_config(cls, config: Any) -> "MaskedAutoregression":
        """Return the task of a config; raise ValueError if its parts do not fit together."""
        task = cls(**cls.fields(config))
        task._check_network()
        autoregression.masked_counts(task.schedule, task._length, task.num_steps)
        check_no_interval(config.sampling, cls.__name__)
        *_, token_grid = task.abstract_sampling_inputs(config.sampling, {}, ())
        times = evaluation_times(task.sampler, task.process, token_grid)
        diffusion.check_target(task.process, task.objective.target, times)
        return task

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        check_one_grid(config)
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        patch, shape = config.patch_size, space.shape
        if len(shape) != 3 or any(side % patch for side in shape[:2]):
            raise ValueError(
                f"config.patch_size is {patch}, and config.space has examples of shape "
                f"{list(shape)}: they must be images whose sides it divides"
            )
        condition = condition_of(config)
        objective = Objective.from_config(config)
        network = kinds.CONTINUOUS_TOKEN_NETWORK.bind(
            config.model,
            "model",
            channels=patch**2 * shape[-1],
            grid=(shape[0] // patch, shape[1] // patch),
            learned_variance=objective.learned_variance,
            **condition.network_fields,
        )
        sampler = cls.sampler_kind.bind(config.sampling.sampler, "sampling.sampler")
        if not hasattr(sampler.func, "table"):
            raise ValueError(
                f"config.sampling.sampler.name is {config.sampling.sampler.name!r}, whose noise "
                "has no temperature; take a sampler of fixed steps, such as 'ddpm' or 'euler'"
            )
        return dict(
            network=network,
            space=space,
            condition=condition,
            objective=objective,
            optimization=Optimization.from_config(config),
            sampler=sampler,
            flip=config.data.flip,
            dequantize_levels=config.data.get("dequantize_levels"),
            patch_size=patch,
            num_steps=config.sampling.num_steps,
            schedule=kinds.MASK_SCHEDULE.find(config.sampling.schedule, "sampling.schedule"),
        )

    @property
    def _channels(self) -> int:
        return self.patch_size**2 * self.space.shape[-1]

    @property
    def _length(self) -> int:
        return int(np.prod(self.space.shape)) // self._channels

    def _inputs(self) -> tuple[Array, ...]:
        """Return inputs of the network for a batch of one."""
        x, mask = jnp.zeros((1, self._length, self._channels)), jnp.zeros((1, self._length), bool)
        return x, mask, self.condition.example(), x, jnp.zeros(1)

    def _check_network(self) -> None:
        """Raise ValueError if the network does not take the tokens and the condition."""
        x, mask, condition, _, t = inputs = jax.eval_shape(self._inputs)
        apply = lambda *inputs: self.network.init_with_output(*inputs)[0]
        words = f"tokens {list(x.shape)}, mask {list(mask.shape)}, a condition, x_t and t {[1]}"
        returned = traced_shape(self.network, "model", words, apply, jax.random.key(0), *inputs)
        expected = (*x.shape[:2], self._channels * (1 + self.objective.learned_variance))
        if returned != expected:
            raise ValueError(
                f"config.model names {type(self.network).__name__}, which returns {list(returned)} "
                f"of tokens {list(x.shape)}; config.loss needs {list(expected)}"
            )

    def _init_network(self, key: Key[Array, ""]) -> PyTree:
        return self.network.init(key, *self._inputs())["params"]

    def _examples(self, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree) -> Tokens:
        return patchify(super()._examples(batch, key, frozen), self.patch_size)

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        guidance_scale: float | Float[Array, ""],
        temperature: float | Float[Array, ""],
        token_grid: Float[Array, " times"],
        frozen: PyTree = None,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, " batch *shape"] | Float[Array, " steps batch *shape"]:
        """Return samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Args:
            guidance_scale: of the last tokens. It grows from 1 with the share of drawn tokens. A
                scale below 1 holds for all tokens.
            temperature: what the noise of each step is multiplied by in the diffusion of a token.
                The first noise stays, as in the authors' program. 1 samples from the model.
            token_grid: times of the diffusion of a token, noise end first.
            frozen: what `frozen` loads, if anything.
            weights: as of `State.weights`.
            trajectory: the samples after every step, with zeros for masked tokens.
        """
        keys = diffusion.sample_keys(key, indices)
        apply = functools.partial(self.network.apply, {"params": state.weights(weights)})
        condition, null = self.condition.of_labels(labels, frozen), self.condition.null(frozen)
        pairs = autoregression.pair(condition, null)

        def states(x, mask):
            twice = (jnp.repeat(a, 2, axis=0) for a in (x, mask))
            z = apply(*twice, pairs, method="states")
            return z[0::2], z[1::2]

        tokens = autoregression.mar_sample(
            keys,
            states,
            functools.partial(self._draw, apply, guidance_scale, temperature, token_grid),
            self._channels,
            autoregression.masked_counts(self.schedule, self._length, self.num_steps),
            trajectory,
        )

        def decode(tokens):
            samples = unpatchify(tokens, self.patch_size, *self.space.shape[:2])
            return self.space.decode(samples, frozen)

        return jax.lax.map(decode, tokens) if trajectory else decode(tokens)

    def _draw(self, apply, guidance_scale, temperature, token_grid, keys, states, share) -> Tokens:
        """Return the tokens of some places, drawn by the guided diffusion of each."""
        scale = autoregression.linear_guidance_scale(guidance_scale, share)
        denoiser = self.objective.denoiser(functools.partial(apply, method="denoise"))
        guided = diffusion.guide(denoiser, *states, scale)
        table = self.sampler.func.table(self.process, token_grid, **self.sampler.keywords)
        noise = self.process.prior(keys, (states[0].shape[1], self._channels), token_grid[0])
        return diffusion.run(guided, noise, diffusion.scale_noise(table, temperature), keys)

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        autoregression.check_sampling(1, sampling.temperature)
        numbers = jnp.float32(sampling.guidance_scale), jnp.float32(sampling.temperature)
        grid = kinds.GRID.bind(sampling.grid, "sampling.grid")
        return *numbers, grid(self.process, sampling.token_steps), *frozen

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often sampling evaluates the network of all tokens, not the denoiser."""
        return self.num_steps

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        own = {name: sampling[name] for name in ("schedule", "token_steps", "temperature")}
        return super().describe_sampling(sampling) | own
