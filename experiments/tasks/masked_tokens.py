"""MaskGIT over the codes of a frozen tokenizer: all masked tokens are predicted from the others."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.tasks.optimization import State
from experiments.tasks.tokens import TokenSampler, TokenTask
from genjax import autoregression
from genjax.diffusion import sample_keys


@dataclass(frozen=True)
class MaskedTokens(TokenTask):
    """A network of masked tokens, revealed by confidence (MaskGIT, Chang et al. 2022).

    Attributes:
        label_smoothing: as of `genjax.autoregression.masked_loss`.
    """

    label_smoothing: float

    network_kind = kinds.MASKED_NETWORK
    sampler = "the most confident tokens first"

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        return super().fields(config) | dict(label_smoothing=config.label_smoothing)

    @classmethod
    def from_config(cls, config: Any) -> "MaskedTokens":
        """Return the task of a config.

        Raises:
            ValueError: as of `TokenTask`, or there are more steps than tokens.
        """
        task = super().from_config(config)
        task.abstract_sampling_inputs(config.sampling, {}, ())
        return task

    def losses(
        self,
        params: PyTree,
        key: Key[Array, ""],
        tokens: Int[Array, "batch length"],
        condition: PyTree,
        frozen: PyTree = None,
    ) -> Float[Array, " batch"]:
        mask = autoregression.random_masks(jax.random.split(key, len(tokens)), self.length)
        masked = jnp.where(mask, self.network.mask_token, tokens)
        logits = self._apply(params)(masked, condition)
        return autoregression.masked_loss(logits, tokens, mask, self.label_smoothing)

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        sampler: TokenSampler,
        counts: Int[Array, "steps masked"],
        temperatures: Float[Array, " steps"],
        frozen: PyTree = None,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, "..."]:
        """Return samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Guidance grows with the share of revealed tokens, from 1 to the scale of the sampler. A
        scale below 1 holds in all steps.

        Args:
            counts, temperatures: of the steps (`autoregression.maskgit`).
            frozen: what `frozen` loads.
            weights: as of `State.weights`.
            trajectory: return the picture after each step; masked places are grey.
        """
        predict = autoregression.guided_predict(
            self._apply(state.weights(weights)),
            self.condition.of_labels(labels, frozen),
            self.condition.null(frozen),
            functools.partial(autoregression.linear_guidance_scale, sampler.guidance_scale),
        )
        masks = jnp.full((len(labels), self.length), self.network.mask_token)
        steps = counts, temperatures, sampler, trajectory
        keys = sample_keys(key, indices)
        tokens = autoregression.maskgit(keys, predict, masks, self.network.mask_token, *steps)
        if trajectory:
            tokens = jnp.concatenate([masks[None], tokens])
        return self._images(tokens, frozen)

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        schedule = kinds.MASK_SCHEDULE.find(sampling.schedule, "sampling.schedule")
        counts = autoregression.masked_counts(schedule, self.length, sampling.num_steps)
        first = sampling.choice_temperature
        temperatures = autoregression.choice_temperatures(sampling.num_steps, first)
        sampler, *others = super().abstract_sampling_inputs(sampling, batch, frozen)
        return sampler, jnp.asarray(counts), jnp.asarray(temperatures), *others

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often sampling evaluates the network: once for each step."""
        return sampling.num_steps

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        names = "num_steps", "schedule", "choice_temperature"
        return super().describe_sampling(sampling) | {name: sampling[name] for name in names}
