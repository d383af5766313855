"""Next-scale prediction: maps of tokens from coarse to fine, each drawn at once (VAR)."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.datasets import Data
from experiments.tasks import optimization
from experiments.tasks.autoregression import Autoregression
from experiments.tasks.diffusion import Diffusion
from experiments.tasks.optimization import Optimization, State
from experiments.tasks.shapes import traced_shape
from genjax import autoregression, diffusion
from genjax.training import Mean
from genjax.training.task import Condition, Space

Tokens = Int[Array, "batch length"]


@dataclass(frozen=True)
class NextScale:
    """A network of each map of codes given the coarser ones, trained on cross-entropy in nats.

    Attributes:
        space: `Tokens` of an autoencoder with a `MultiScaleQuantizer`.
        dropout_rate: probability that a training example's condition is dropped.
        flip: mirror half of the examples left to right.
        top_k: of sampling, or None.
    """

    network: nn.Module
    space: Space
    condition: Condition
    optimization: Optimization
    dropout_rate: float
    flip: bool
    top_k: int | None

    animation: ClassVar[str] = "decoding.gif"

    @classmethod
    def from_config(cls, config: Any) -> "NextScale":
        """Return the task of a config.

        Raises:
            ValueError: a part does not exist, the space has no maps of several scales, the network
                does not return logits of them, or sampling has options that are not allowed.
        """
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        layout = getattr(space, "layout", None)
        if layout is None or layout.sides is None:
            raise ValueError(
                f"config.space.name is {config.space.name!r} and has no maps of several scales; "
                "take 'Tokens' of an autoencoder with a MultiScaleQuantizer, such as "
                "configs/emoji_autoencoder.py:scales_adversarial"
            )
        condition = kinds.CONDITION.bind(
            config.condition, "condition", data=Data.from_config(config)
        )
        network = kinds.SCALE_NETWORK.bind(
            config.model,
            "model",
            vocabulary=layout.vocabulary,
            sides=layout.sides,
            **condition.network_fields,
        )
        layout.check(network)
        task = cls(
            network=network,
            space=space,
            condition=condition,
            optimization=Optimization.from_config(config),
            dropout_rate=config.conditioning_dropout,
            flip=config.data.flip,
            top_k=config.sampling.top_k,
        )
        task._check_network()
        autoregression.check_sampling(
            layout.vocabulary, top_k=task.top_k, **_law_options(config.sampling)
        )
        return task

    @property
    def sides(self) -> tuple[int, ...]:
        return self.space.layout.sides

    averages = Autoregression.averages

    def _example(self) -> tuple[Array, PyTree]:
        """Return inputs of the network for a batch of one."""
        tokenizer = self.space.autoencoder.network
        count = self.space.layout.length - self.sides[0] ** 2
        return jnp.zeros((1, count, tokenizer.latent_channels)), self.condition.example()

    def _check_network(self) -> None:
        """Raise ValueError if the network does not return logits of every token."""
        inputs, condition = jax.eval_shape(self._example)
        apply = lambda *inputs: self.network.init_with_output(*inputs)[0]
        words = f"inputs {list(inputs.shape)} and a condition"
        key, layout = jax.random.key(0), self.space.layout
        returned = traced_shape(self.network, "model", words, apply, key, inputs, condition)
        expected = (1, layout.length, layout.vocabulary)
        if returned != expected:
            raise ValueError(
                f"config.model names {type(self.network).__name__}, which returns {list(returned)} "
                f"of maps of sides {self.sides}; logits of every token are {list(expected)}"
            )

    def frozen(self) -> tuple:
        """Return what the condition and the space load."""
        return (self.condition.frozen() | self.space.frozen(),)

    def abstract_frozen(self) -> tuple:
        """Return what `frozen` would load, in shapes."""
        return (self.condition.abstract_frozen() | self.space.abstract_frozen(),)

    def init(self, key: Key[Array, ""]) -> State:
        return self.optimization.first_state(self.network.init(key, *self._example())["params"])

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree
    ) -> tuple[State, dict[str, Float[Array, ""] | Mean]]:
        loss = functools.partial(self._loss, frozen=frozen)
        state, (sums, counts), metrics = self.optimization.step(state, loss, batch, key)
        names = [f"loss/side_{side}" for side in self.sides]
        return state, metrics | {
            name: Mean(*of_map) for name, *of_map in zip(names, sums, counts, strict=True)
        }

    def _loss(
        self, params: PyTree, batch: dict, key: Key[Array, ""], frozen: PyTree
    ) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        """Return the mean loss of all tokens, and its sums and counts by maps."""
        tokens = self.space.encode(self._mirrored(batch, key)[self.space.feature], frozen)
        condition = diffusion.drop_conditioning(
            key, self.condition.of_batch(batch), self.condition.null(frozen), self.dropout_rate
        )
        losses = -self.log_probability(params, tokens, condition, frozen)
        parts = jnp.split(losses, np.cumsum(np.square(self.sides))[:-1], axis=1)
        sums = jnp.stack([part.sum() for part in parts])
        return losses.mean(), (sums, jnp.asarray([part.size for part in parts], jnp.float32))

    _mirrored = Diffusion._mirrored

    def log_probability(
        self, params: PyTree, tokens: Tokens, condition: PyTree, frozen: PyTree
    ) -> Float[Array, "batch length"]:
        """Return log p of each token given the coarser maps, in nats."""
        inputs = self._quantizer(frozen, "inputs")(tokens)
        logits = self.network.apply({"params": params}, inputs, condition)
        log_probabilities = jax.nn.log_softmax(logits)
        return jnp.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]

    def _quantizer(self, frozen: PyTree, method: str) -> Callable:
        """Return a method of the tokenizer's quantizer as a function."""
        call = lambda tokenizer, *args: getattr(tokenizer.quantizer, method)(*args)
        apply = self.space.autoencoder.network.apply
        return functools.partial(apply, frozen["tokenizer"], method=call)

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        guidance_scale: float | Float[Array, ""],
        law_options: Mapping[str, Float[Array, ""] | None],
        frozen: PyTree,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> (
        Float[Array, "batch height width channels"]
        | Float[Array, "maps batch height width channels"]
    ):
        """Return samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Args:
            guidance_scale: of the last map. It grows linearly from 1 at the first.
            law_options: `temperature`, `top_p` and `min_p` of `genjax.autoregression.sample`.
            frozen: what `frozen` loads.
            weights: as of `State.weights`.
            trajectory: the pictures of the first map, of the first two, and so on.
        """
        tokens, total = autoregression.decode_scales(
            diffusion.sample_keys(key, indices),
            *self._guided_step(state.weights(weights), labels, guidance_scale, frozen),
            self._quantizer(frozen, "extend"),
            jnp.zeros((len(labels), *self._latent_shape)),
            len(self.sides),
            functools.partial(autoregression.sample, top_k=self.top_k, **law_options),
        )
        network = self.space.autoencoder.network
        decode = functools.partial(network.apply, frozen["tokenizer"], method="decode")
        if not trajectory:
            return decode(total)
        return jax.lax.map(decode, jnp.stack(self._quantizer(frozen, "sums")(tokens)))

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        return self.sides[-1], self.sides[-1], self.space.autoencoder.network.latent_channels

    def _guided_step(
        self, params: PyTree, labels: Int[Array, " batch"], guidance_scale: Any, frozen: PyTree
    ) -> tuple[Callable, PyTree]:
        """Return the step of `decode_scales`, with guidance, and its first state."""
        condition, null = self.condition.of_labels(labels, frozen), self.condition.null(frozen)
        apply = functools.partial(self.network.apply, {"params": params})
        scale = autoregression.growing(guidance_scale - 1, len(self.sides))
        step = autoregression.guide(functools.partial(apply, method="step"), scale)
        return step, apply(autoregression.pair(condition, null), method="start")

    variables, networks = Autoregression.variables, Autoregression.networks
    start_from, alarms = Autoregression.start_from, Autoregression.alarms
    is_sampled_from = staticmethod(optimization.is_sampled_from)

    def sampling_inputs(self, sampling: Any) -> tuple:
        return self.abstract_sampling_inputs(sampling, {}, self.frozen())

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        options = jax.tree.map(jnp.float32, _law_options(sampling))
        return jnp.float32(sampling.guidance_scale), options, *frozen

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often sampling evaluates the network: once for each map."""
        return len(self.sides)

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {
            "sampler": "one map after another",
            "guidance_scale": sampling.guidance_scale,
            "top_k": sampling.top_k,
            **_law_options(sampling),
        }

    def functions(self, state: State, sampling: Any) -> dict[str, Callable]:
        """Return `reconstruct`, of bytes by the frozen autoencoder."""
        return {"reconstruct": lambda images: _reconstruct(self.space)(self.space.frozen(), images)}


def _law_options(sampling: Any) -> dict[str, float | None]:
    return {name: sampling[name] for name in ("temperature", "top_p", "min_p")}


@functools.cache
def _reconstruct(space: Space) -> Callable:
    def reconstruct(frozen, images):
        return space.to_data(space.decode(space.encode(images, frozen), frozen))

    return jax.jit(reconstruct)
