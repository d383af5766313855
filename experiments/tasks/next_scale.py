"""Next-scale prediction: maps of tokens from coarse to fine, each drawn at once (VAR)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.spaces import Tokens
from experiments.tasks.optimization import State
from experiments.tasks.tokens import TokenSampler, TokenTask
from genjax import autoregression
from genjax.diffusion import sample_keys
from genjax.training.task import Condition


class NextScale(TokenTask):
    """A network of each map of codes given the coarser ones (VAR, Tian et al. 2024).

    The space has the tokens of an autoencoder with a `MultiScaleQuantizer`.
    """

    network_kind = kinds.SCALE_NETWORK
    sampler = "one map after another"

    @classmethod
    def network_fields(cls, config: Any, space: Tokens, condition: Condition) -> dict[str, Any]:
        """Return the fields of the network that follow from other parts of the config.

        Raises:
            ValueError: the tokens are not those of several maps.
        """
        if space.layout.sides is None:
            raise ValueError(
                f"config.space has codes of one grid {space.layout.grid}, and a NextScale task "
                "predicts maps of several sides; take an autoencoder with a MultiScaleQuantizer, "
                "such as configs/emoji_autoencoder.py:scales_adversarial"
            )
        return dict(sides=space.layout.sides, **condition.network_fields)

    @property
    def sides(self) -> tuple[int, ...]:
        return self.space.layout.sides

    def _inputs(self) -> tuple[Float[Array, "1 inputs features"], PyTree]:
        """Return inputs of the network for a batch of one."""
        shape = self.length - self.sides[0] ** 2, self._tokenizer.latent_channels
        return jnp.zeros((1, *shape)), self.condition.example()

    def losses(
        self,
        params: PyTree,
        key: Key[Array, ""],
        tokens: Int[Array, "batch length"],
        condition: PyTree,
        frozen: PyTree = None,
    ) -> Float[Array, " batch"]:
        return -self.log_probability(params, tokens, condition, frozen).mean(axis=1)

    def log_probability(
        self, params: PyTree, tokens: Int[Array, "batch length"], condition: PyTree, frozen: PyTree
    ) -> Float[Array, "batch length"]:
        """Return log p of each token given the condition and the coarser maps, in nats."""
        logits = self._apply(params)(self._of_quantizer(frozen, "inputs")(tokens), condition)
        logits = logits.astype(jnp.float32)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, tokens)

    @property
    def _tokenizer(self) -> Any:
        return self.space.autoencoder.network

    def _of_quantizer(self, frozen: PyTree, method: str) -> Callable:
        """Return a method of the tokenizer's quantizer as a function."""
        call = lambda tokenizer, *args: getattr(tokenizer.quantizer, method)(*args)
        return functools.partial(self._tokenizer.apply, frozen["tokenizer"], method=call)

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
    ) -> Float[Array, " *frames batch height width channels"]:
        """Return samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Guidance grows linearly with the map, from 1 to the scale of the sampler. A scale below 1
        holds for all maps.

        Args:
            frozen: what `frozen` loads.
            weights: as of `State.weights`.
            trajectory: return the pictures of the first map, of the first two, and so on.
        """
        condition, null = self.condition.of_labels(labels, frozen), self.condition.null(frozen)
        apply, num_scales = self._apply(state.weights(weights)), len(self.sides)
        scale = autoregression.linear_guidance(sampler.guidance_scale - 1, num_scales)
        latents = self.sides[-1], self.sides[-1], self._tokenizer.latent_channels
        tokens, total = autoregression.decode_scales(
            sample_keys(key, indices),
            autoregression.guide(functools.partial(apply, method="step"), scale),
            apply(autoregression.pair(condition, null), method="start"),
            self._of_quantizer(frozen, "extend"),
            jnp.zeros((len(labels), *latents)),
            num_scales,
            sampler,
        )
        decode = functools.partial(self._tokenizer.apply, frozen["tokenizer"], method="decode")
        if trajectory:
            return jax.lax.map(decode, jnp.stack(self._of_quantizer(frozen, "sums")(tokens)))
        return decode(total)

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often sampling evaluates the network: once for each map."""
        return len(self.sides)
