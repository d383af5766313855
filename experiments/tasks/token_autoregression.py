"""Autoregression over the codes of a frozen tokenizer: each token given those before it."""

import functools
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.tasks.optimization import State
from experiments.tasks.tokens import TokenSampler, TokenTask
from genjax import autoregression
from genjax.diffusion import sample_keys


class TokenAutoregression(TokenTask):
    """A causal network of tokens, trained on their exact likelihood (LlamaGen, Sun et al. 2024)."""

    network_kind = kinds.SEQUENCE_NETWORK
    sampler = "one token after another"

    def losses(
        self,
        params: PyTree,
        key: Key[Array, ""],
        tokens: Int[Array, "batch length"],
        condition: PyTree,
        frozen: PyTree = None,
    ) -> Float[Array, " batch"]:
        return -self.log_probability(params, tokens, condition).mean(axis=1)

    def log_probability(
        self, params: PyTree, tokens: Int[Array, "batch length"], condition: PyTree
    ) -> Float[Array, "batch length"]:
        """Return log p of each token given the condition and the tokens before it, in nats."""
        logits = self._apply(params)(tokens, condition).astype(jnp.float32)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, tokens)

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        sampler: TokenSampler,
        frozen: PyTree = None,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, "..."]:
        """Return samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Args:
            frozen: what `frozen` loads.
            weights: as of `State.weights`.
            trajectory: return the picture after each row of tokens; other places are grey.
        """
        condition, null = self.condition.of_labels(labels, frozen), self.condition.null(frozen)
        tokens = self.decode(
            state.weights(weights), sample_keys(key, indices), condition, null, sampler
        )
        if trajectory:
            rows, width = self.space.layout.grid
            drawn = jnp.arange(self.length) < width * jnp.arange(rows + 1)[:, None, None]
            tokens = jnp.where(drawn, tokens, self.space.vocabulary)
        return self._images(tokens, frozen)

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often sampling evaluates the network: once for each token."""
        return self.length

    def decode(
        self,
        params: PyTree,
        keys: Key[Array, " batch"],
        condition: PyTree,
        null: PyTree,
        sampler: TokenSampler,
    ) -> Int[Array, "batch length"]:
        """Return tokens, drawn with guidance by one call of the network for each."""
        apply = self._apply(params)
        logits, cache = apply(autoregression.pair(condition, null), method="prefill")
        step = functools.partial(apply, method="step")
        return autoregression.decode(
            keys,
            autoregression.guide(step, sampler.guidance_scale),
            autoregression.guided(logits, sampler.guidance_scale),
            cache,
            self.length,
            sampler,
        )
