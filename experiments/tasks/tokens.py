"""The shared part of tasks over the codes of a frozen tokenizer, given a class or a text."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.inputs.datasets import condition_of
from experiments.inputs.spaces import Tokens
from experiments.tasks.diffusion import Diffusion
from experiments.tasks.optimization import OneNetwork, Optimization, State
from experiments.tasks.shapes import check_one_grid, traced_shape
from genjax import autoregression, diffusion
from genjax.training.task import Condition


@flax.struct.dataclass
class TokenSampler:
    """How tokens are drawn. Only another `top_k` recompiles, or one more filter.

    Attributes:
        guidance_scale: 1 is plain conditional sampling, 0 unconditional.
        temperature, top_k, top_p, min_p: as of `genjax.autoregression.sample`.
    """

    guidance_scale: Float[Array, ""]
    temperature: Float[Array, ""]
    top_p: Float[Array, ""] | None
    min_p: Float[Array, ""] | None
    top_k: int | None = flax.struct.field(pytree_node=False)

    @classmethod
    def from_config(cls, sampling: Any, vocabulary: int) -> "TokenSampler":
        """Return the sampler of `config.sampling`; raise ValueError as `check_sampling` does."""
        options = {name: sampling[name] for name in ("temperature", "top_k", "top_p", "min_p")}
        autoregression.check_sampling(vocabulary, **options)
        options["guidance_scale"] = sampling.guidance_scale
        top_k = options.pop("top_k")
        numbers = {name: None if p is None else jnp.float32(p) for name, p in options.items()}
        return cls(top_k=top_k, **numbers)

    def __call__(
        self, keys: Key[Array, " batch"], logits: Float[Array, " batch *shape vocabulary"]
    ) -> Int[Array, " batch *shape"]:
        """Draw tokens from guided logits."""
        filters = self.top_k, self.top_p, self.min_p
        return autoregression.sample(keys, logits, self.temperature, *filters)


@dataclass(frozen=True)
class TokenTask(OneNetwork):
    """A network of the codes of a frozen tokenizer; a child says its loss and how codes are drawn.

    Attributes:
        dropout_rate: probability that a training example's condition is dropped.
        flip: mirror half of the examples left to right.
    """

    network: nn.Module
    space: Tokens
    condition: Condition
    optimization: Optimization
    dropout_rate: float
    flip: bool

    animation: ClassVar[str] = "decoding.gif"
    network_kind: ClassVar[kinds.Kind]
    sampler: ClassVar[str]  # in words
    adapters: ClassVar[None] = None

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Return the task of a config.

        Raises:
            ValueError: a part does not exist, the space has no codes, examples have several
                shapes, the network is made for other codes or for another prefix, or tokens cannot
                be drawn so.
        """
        task = cls(**cls.fields(config))
        task._check_network()
        task.token_sampler(config.sampling)
        return task

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config; raise ValueError as `from_config` does."""
        check_one_grid(config)
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        if not hasattr(space, "layout"):
            raise ValueError(
                f"config.space.name is {config.space.name!r}, which has no codes; take 'Tokens'"
            )
        condition = condition_of(config)
        given = cls.network_fields(config, space, condition)
        network = cls.network_kind.bind(config.model, "model", vocabulary=space.vocabulary, **given)
        space.layout.check(network)
        return dict(
            network=network,
            space=space,
            condition=condition,
            optimization=Optimization.from_config(config),
            dropout_rate=config.conditioning_dropout,
            flip=config.data.flip,
        )

    @classmethod
    def network_fields(cls, config: Any, space: Tokens, condition: Condition) -> dict[str, Any]:
        """Return the fields of the network that follow from other parts of the config."""
        prefix = kinds.PREFIX.bind(config.prefix, "prefix", **condition.network_fields)
        return dict(grid=space.layout.grid, prefix=prefix)

    def _inputs(self) -> tuple[Array, PyTree]:
        """Return inputs of the network for a batch of one."""
        return jnp.zeros((1, self.length), jnp.int32), self.condition.example()

    def _check_network(self) -> None:
        """Raise ValueError if the network has too few classes, or no logits of all tokens."""
        for name, value in self.condition.network_fields.items():
            if (own := getattr(self.network, name, value)) < value:
                raise ValueError(
                    f"config.model has {name} {own}, and config.condition {value}: set "
                    f"config.model.{name} to {value}"
                )
        tokens, condition = jax.eval_shape(self._inputs)
        apply = lambda *inputs: self.network.init_with_output(*inputs)[0]
        words = f"tokens {list(tokens.shape)} and config.condition's example"
        inputs = jax.random.key(0), tokens, condition
        returned = traced_shape(self.network, "model", words, apply, *inputs)
        expected = (1, self.length, self.space.vocabulary)
        if returned != expected:
            raise ValueError(
                f"config.model names {type(self.network).__name__}, which returns {list(returned)} "
                f"of tokens {list(tokens.shape)}; logits of all tokens are {list(expected)}"
            )

    @property
    def length(self) -> int:
        """The number of tokens of an example."""
        return self.space.layout.length

    def init(self, key: Key[Array, ""]) -> State:
        return self.optimization.first_state(self.network.init(key, *self._inputs())["params"])

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree = None
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        loss = functools.partial(self._loss, frozen=frozen)
        state, _, metrics = self.optimization.step(state, loss, batch, key)
        return state, metrics

    def _loss(
        self, params: PyTree, batch: dict, key: Key[Array, ""], frozen: PyTree
    ) -> tuple[Float[Array, ""], tuple]:
        dropout_key, loss_key = jax.random.split(key)
        batch = self._mirrored(batch, key)
        codes = self.space.encode(batch[self.space.feature], frozen)
        condition, null = self.condition.of_batch(batch), self.condition.null(frozen)
        condition = diffusion.drop_conditioning(dropout_key, condition, null, self.dropout_rate)
        tokens = self.space.layout.sequence(codes)
        return self.losses(params, loss_key, tokens, condition, frozen).mean(), ()

    def losses(
        self,
        params: PyTree,
        key: Key[Array, ""],
        tokens: Int[Array, "batch length"],
        condition: PyTree,
        frozen: PyTree = None,
    ) -> Float[Array, " batch"]:
        """Return the loss of each example, in nats per token."""
        raise NotImplementedError

    def _apply(self, params: PyTree) -> functools.partial:
        return functools.partial(self.network.apply, {"params": params})

    def _images(self, tokens: Int[Array, "*frames batch length"], frozen: PyTree) -> Array:
        """Return the images or sounds of tokens, frame by frame if there are frames."""
        if tokens.ndim == 3:
            return jax.lax.map(lambda each: self._images(each, frozen), tokens)
        return self.space.decode(self.space.layout.codes(tokens), frozen)

    def token_sampler(self, sampling: Any) -> TokenSampler:
        """Return the sampler of `config.sampling`; raise ValueError as `check_sampling` does."""
        return TokenSampler.from_config(sampling, self.space.vocabulary)

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        return self.token_sampler(sampling), *frozen

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        names = ["temperature", "top_k", "top_p", "min_p"]
        if not getattr(self.condition, "is_empty", False):
            names.insert(0, "guidance_scale")
        options = {name: sampling[name] for name in names if sampling[name] is not None}
        return {"sampler": self.sampler, **options}

    frozen, abstract_frozen = Diffusion.frozen, Diffusion.abstract_frozen
    functions, _reconstruct = Diffusion.functions, Diffusion._reconstruct
    sampling_inputs = Diffusion.sampling_inputs
    with_prompts, _mirrored = Diffusion.with_prompts, Diffusion._mirrored
