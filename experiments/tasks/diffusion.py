"""Diffusion and flow matching, in any space, under any condition."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.configuration import kinds
from experiments.configuration.options import described
from experiments.inputs.datasets import condition_of
from experiments.inputs.standardized_pixels import check_not_standardized
from experiments.tasks.adapters import Adapters
from experiments.tasks.optimization import OneNetwork, Optimization, State
from experiments.tasks.shapes import first_output, traced_shape
from genjax import diffusion
from genjax.data import flip_images
from genjax.diffusion import losses, times
from genjax.training import Mean
from genjax.training.task import Condition, Space

Number = Float[Array, ""]
Scale = float | Number | tuple[Number, Number, Number]  # a guidance scale, or with low and high
TIME_BINS = 8  # equal parts of a process' times, for each of which the loss is logged


def time_grid(process: PyTree[diffusion.Process], sampling: Any) -> PyTree[Float[Array, " times"]]:
    """Return the grid of `sampling.num_steps` steps that `sampling.grid` names, noise end first.

    Raises:
        ValueError: there is no such grid, or it cannot be made.
    """
    grid = kinds.GRID.bind(sampling.grid, "sampling.grid")
    return jax.tree.map(lambda process: grid(process, sampling.num_steps), process)


def interval_of(sampling: Any) -> tuple[float, float] | None:
    """Return the times (low, high) that guidance is limited to by `sampling`, None for all times.

    Raises:
        ValueError: the interval is empty or has not two ends.
    """
    interval = getattr(sampling, "guidance_interval", None)
    if interval is not None and (np.shape(interval) != (2,) or not interval[0] < interval[1]):
        raise ValueError(
            f"config.sampling.guidance_interval is {interval}; it must be two times, lower first"
        )
    return interval and tuple(interval)


def check_no_interval(sampling: Any, task: str) -> None:
    """Raise ValueError if `sampling` limits guidance to an interval, which a task does not do."""
    if interval := interval_of(sampling):
        raise ValueError(
            f"config.sampling.guidance_interval is {interval}, but {task} guides at all times: "
            "leave it out"
        )


def guidance_of(sampling: Any) -> Scale:
    """Return the guidance scale of `sampling`, with the ends of its interval if there is one.

    All are arrays, so one compiled program samples by any of them.
    """
    scale, interval = jnp.float32(sampling.guidance_scale), interval_of(sampling)
    return (scale, *map(jnp.float32, interval)) if interval else scale


def evaluation_times(
    sampler: functools.partial,
    process: PyTree[diffusion.Process],
    times: PyTree[Float[Array, " times"]],
) -> PyTree[Array]:
    """Return the times at which a sampler, bound to its options, evaluates the network.

    A sampler without a table of coefficients gives only the times of the grid. The last of them
    counts if the sampler has `evaluation_times`, as `adaptive` does.
    """
    table = getattr(sampler.func, "table", None)
    of_grid = getattr(sampler.func, "evaluation_times", lambda process, times: times[:-1])
    evaluated = lambda process, times: (
        table(process, times, **sampler.keywords).times if table else of_grid(process, times)
    )
    return jax.tree.map(evaluated, process, times)


def check_waits(
    sampler: functools.partial,
    process: PyTree[diffusion.Process],
    times: PyTree[Float[Array, " times ..."]],
    shape: PyTree[tuple[int, ...]],
) -> None:
    """Check that a sampler takes a grid in which what is given waits at a fixed time.

    The sampler is traced with a stand-in for the network.

    Args:
        sampler: bound to its options.
        times: the grid of each array of an example.
        shape: of an example; a tree where it has several arrays.

    Raises:
        ValueError: the sampler refuses the grid.
    """
    is_shape = lambda a: isinstance(a, tuple)
    like = lambda shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    noise = jax.tree.map(like, shape, is_leaf=is_shape)
    stand_in = lambda x_t, t: diffusion.Prediction(x_t, x_t)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    sample = lambda noise, keys: sampler(stand_in, process, noise, times, keys=keys)
    try:
        jax.eval_shape(sample, noise, keys)
    except ValueError as error:
        raise ValueError(
            f"config.sampling.sampler.name is {sampler.func.__name__!r}, which cannot sample "
            "several arrays, or keep what is given at a fixed time; take a sampler of single "
            f"steps, such as 'ddim', 'euler' or 'heun': {error}"
        ) from error


@dataclass(frozen=True)
class Objective:
    """The objective of the network: a process, a target, and a loss over times.

    Attributes:
        dropout_rate: probability that a training example's condition is dropped.
    """

    process: diffusion.Process
    target: Callable
    times: times.TimeDistribution
    variates: Callable
    loss: Callable
    weighting: losses.Weighting
    dropout_rate: float

    @classmethod
    def from_config(cls, config: Any) -> "Objective":
        distribution = dict(config.times)
        shift = distribution.pop("shift", 1.0)
        variates = distribution.pop("variates", "independent")
        return cls(
            process=kinds.PROCESS.bind(config.process, "process"),
            target=kinds.TARGET.bind(config.target, "target"),
            times=times.shifted(kinds.TIME_DISTRIBUTION.bind(distribution, "times"), shift),
            variates=kinds.VARIATES.find(variates, "times.variates"),
            loss=kinds.LOSS.bind(config.loss, "loss"),
            weighting=kinds.WEIGHTING.bind(config.weighting, "weighting"),
            dropout_rate=config.conditioning_dropout,
        )

    @property
    def learned_variance(self) -> bool:
        return self.loss.func is losses.hybrid_loss

    def denoiser(self, apply: Callable) -> Callable:
        """Return `denoiser(x_t, t, condition)` of a network `apply(x, t, condition)`."""
        return diffusion.predict(
            apply, self.process, self.target, learned_variance=self.learned_variance
        )

    def __call__(
        self, key: Key[Array, ""], apply: Callable, x: PyTree, condition: PyTree, null: PyTree
    ) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        """Return the mean loss, and sums and counts of the loss by parts of the time."""
        dropout_key, loss_key = jax.random.split(key)
        condition = diffusion.drop_conditioning(dropout_key, condition, null, self.dropout_rate)
        each, t = self.losses(loss_key, apply, x, condition)
        return each.mean(), diffusion.sums_by_time(self.process, each, t, TIME_BINS)

    def losses(
        self, key: Key[Array, ""], apply: Callable, x: PyTree, condition: PyTree, **changes: Any
    ) -> tuple[PyTree, PyTree]:
        """Return the loss at each time, and the times.

        Args:
            changes: arguments of the loss in place of the objective's, or besides.
        """
        fields = "process", "target", "times", "variates", "weighting"
        options = {name: getattr(self, name) for name in fields} | changes
        return self.loss(key, apply, x, condition, **options)

    def time_bins(self) -> list[str]:
        edges = np.linspace(*self.process.domain, TIME_BINS + 1)
        return [f"loss/t_{low:.3g}_{high:.3g}" for low, high in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Diffusion(OneNetwork):
    """A network trained to denoise what a space holds, with classifier-free guidance.

    Attributes:
        flip: mirror half of the examples left to right; latents on disk hold their mirror images.
        dequantize_levels: of pixel values, within which uniform noise is added, or None.
        adapters: trained in place of the network's parameters, or None.
    """

    network: nn.Module
    space: Space
    condition: Condition
    objective: Objective
    optimization: Optimization
    sampler: Callable
    flip: bool
    dequantize_levels: int | None
    adapters: Adapters | None = None

    animation = "noise_to_data.gif"
    sampler_kind = kinds.SAMPLER
    built_with = ("sampler",)
    optional_sampling = ("guidance_interval",)  # without it guidance acts at all times
    config_fields = dict(sampling=dict(guidance_interval=tuple | None))
    num_time_bins = TIME_BINS

    @classmethod
    def from_config(cls, config: Any) -> "Diffusion":
        """Return the task of a config.

        Raises:
            ValueError: a part does not exist or does not fit the others: the network does not take
                the space's shape, the condition or a learned variance; or the target is singular
                where the sampler would evaluate the network.
        """
        task = cls(**cls.fields(config))
        task._check_network()
        grid = time_grid(task.process, config.sampling)
        diffusion.check_target(
            task.process, task.objective.target, evaluation_times(task.sampler, task.process, grid)
        )
        return task

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config; raise ValueError as `from_config` does."""
        space = kinds.SPACE.bind(config.space, "space", data=config.data)
        if config.data.get("dequantize_levels"):
            check_not_standardized(space, "the noise of config.data.dequantize_levels")
        condition = condition_of(config)
        adapters = Adapters.from_config(config.get("adapters"))
        if adapters:
            network = adapters.network
            _check_adapted(network, condition.network_fields)
        else:
            network = kinds.DIFFUSION_NETWORK.bind(
                config.model, "model", **condition.network_fields, **cls.conditioning_fields(config)
            )
        return dict(
            network=network,
            space=space,
            condition=condition,
            objective=Objective.from_config(config),
            optimization=Optimization.from_config(config),
            sampler=cls.sampler_kind.bind(config.sampling.sampler, "sampling.sampler"),
            flip=config.data.flip,
            dequantize_levels=config.data.get("dequantize_levels"),
            adapters=adapters,
        )

    @staticmethod
    def conditioning_fields(config: Any) -> dict[str, bool]:
        """Return the fields of the network that give it inputs beside time and condition."""
        return {}

    @property
    def process(self) -> diffusion.Process:
        return self.objective.process

    def _check_network(self) -> None:
        """Raise ValueError if the network does not take what the space and the condition give."""
        shape, divisor = self.space.shape, getattr(self.network, "divisor", 1)
        if any(side % divisor for side in shape[-3:-1]):
            name = "the latents' shape" if self.space.autoencoder else "config.data.image_shape"
            raise ValueError(
                f"{name} {shape} does not divide into patches of {divisor} pixels; change it or "
                "config.model.patch_size"
            )
        channels = shape[-1] * (2 if self.objective.learned_variance else 1)
        if self.objective.learned_variance and not hasattr(self.network, "out_channels"):
            raise ValueError(
                "config.loss.name is 'hybrid_loss', which learns a variance, and "
                f"{type(self.network).__name__} has no out_channels: take another network or loss"
            )
        if self.objective.learned_variance and self.network.out_channels != channels:
            raise ValueError(
                "config.loss.name is 'hybrid_loss', which learns a variance: config.model."
                f"out_channels is {self.network.out_channels} and has to be {channels}, twice the "
                "channels"
            )
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        condition = jax.eval_shape(self.condition.example)
        t = jax.ShapeDtypeStruct((1,), jnp.float32)
        called_with = f"x_t {[1, *shape]}, t [1] and {_shapes(condition)}"
        apply, inputs = first_output(self.network), (jax.random.key(0), x, t, condition)
        returned = traced_shape(
            self.network, "model", called_with, apply, *inputs, **self._extra_inputs(t)
        )
        if not type(self.network).__module__.startswith("genjax."):
            called_with += " with parameters alone and no random key, as samples are made"
            traced_shape(self.network, "model", called_with, self._sampled, *inputs)
        if returned != (1, *shape[:-1], channels):
            raise ValueError(
                f"config.model names {type(self.network).__name__}, which returns {list(returned)} "
                f"of x_t {[1, *shape]}; config.loss needs {[1, *shape[:-1], channels]}"
            )

    def _sampled(self, key: Key[Array, ""], x_t: Array, t: Array, condition: PyTree) -> Array:
        """Apply new parameters as samples do: without random keys or further collections."""
        inputs, extra = (x_t, t, condition), self._extra_inputs(t)
        params = self.network.init(key, *inputs, **extra).get("params", {})
        return self.network.apply({"params": params}, *inputs, **extra)

    def frozen(self) -> tuple:
        """Return what the condition and the space load."""
        base = {"base": self.adapters.load()} if self.adapters else {}
        frozen = self.condition.frozen() | self.space.frozen() | base
        return (frozen,) if frozen else ()

    def abstract_frozen(self) -> tuple:
        """Return what `frozen` would load, in shapes."""
        shapes = lambda: jax.eval_shape(self._init_network, jax.random.key(0))
        base = {"base": shapes()} if self.adapters else {}
        frozen = self.condition.abstract_frozen() | self.space.abstract_frozen() | base
        return (frozen,) if frozen else ()

    def init(self, key: Key[Array, ""]) -> State:
        if self.adapters:
            shapes = jax.eval_shape(self._init_network, key)
            return self.optimization.first_state(self.adapters.init(key, shapes))
        return self.optimization.first_state(self._init_network(key))

    def _init_network(self, key: Key[Array, ""]) -> PyTree:
        x, time = jnp.zeros((1, *self.space.shape)), jnp.zeros(1)
        condition = self.condition.example()
        return self.network.init(key, x, time, condition, **self._extra_inputs(time))["params"]

    def _extra_inputs(self, t: Array) -> dict[str, Array]:
        """Return the network's inputs beside time and condition, with the shape of t."""
        return {}

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree = None
    ) -> tuple[State, dict[str, Float[Array, ""] | Mean]]:
        loss = functools.partial(self._loss, state=state, frozen=frozen)
        state, (sums, counts), metrics = self.optimization.step(state, loss, batch, key)
        bins = zip(self.objective.time_bins(), sums, counts, strict=True)
        return state, {"loss": metrics.pop("loss")} | {
            name: Mean(*bin) for name, *bin in bins
        } | metrics

    def _loss(
        self, params: PyTree, batch: dict, key: Key[Array, ""], state: State, frozen: PyTree
    ) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        batch = self._mirrored(batch, key)
        condition, null = self.condition.of_batch(batch), self.condition.null(frozen)
        x = self._examples(batch, key, frozen)
        apply = self._apply(params, frozen, self._dropout_rngs(key))
        return self.objective(key, apply, x, condition, null)

    @staticmethod
    def _dropout_rngs(key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
        """Return the key by which a network with dropout drops features in a training step."""
        return {"dropout": jax.random.fold_in(key, 4)}

    def _mirrored(self, batch: dict[str, Array], key: Key[Array, ""]) -> dict[str, Array]:
        """Return the batch with half of its images mirrored, if the task mirrors data."""
        images = batch[self.space.feature]
        if not self.flip or images.dtype != jnp.uint8:
            return batch
        return batch | {self.space.feature: flip_images(jax.random.fold_in(key, 2), images)}

    def _examples(self, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree) -> Array:
        """Return what the network sees of a batch, before noise."""
        return self._dequantized(self.space.encode(batch[self.space.feature], frozen), key)

    def _dequantized(self, x: Array, key: Key[Array, ""]) -> Array:
        """Return pixels with uniform noise within their levels, if the task adds it."""
        if not self.dequantize_levels:
            return x
        width = 2 / (self.dequantize_levels - 1)
        return diffusion.dequantize(jax.random.fold_in(key, 3), x, width)

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        guidance_scale: Scale,
        time_grid: Float[Array, " times"],
        frozen: PyTree = None,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, " batch *shape"] | Float[Array, " times batch *shape"]:
        """Return samples, one per label; sample `indices[i]` depends on its index, not its batch.

        Args:
            weights: as of `State.weights`.
            guidance_scale: 1 is plain conditional sampling (see `diffusion.guide`). With the times
                (low, high) of `diffusion.interval`, the scale is 1 at all other times.
            time_grid: noise end first.
            frozen: what `frozen` loads, if anything.
            trajectory: return the states at all times.
        """
        inputs = state.weights(weights), key, labels, indices, guidance_scale, time_grid, frozen
        _, samples = self.solve(*inputs, trajectory=trajectory)
        decode = functools.partial(self.space.decode, frozen=frozen)
        if trajectory and self.space.autoencoder:
            return jax.lax.map(decode, samples)
        return decode(samples)

    def solve(
        self,
        params: PyTree,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        guidance_scale: Scale,
        time_grid: Float[Array, " times"],
        frozen: PyTree = None,
        *,
        trajectory: bool = False,
    ) -> tuple[Float[Array, " batch *shape"], Array]:
        """Return noise, and what the sampler makes of it, both in the space of the network.

        Args:
            params: of the network that is sampled. The other arguments are those of `generate`.
        """
        keys = diffusion.sample_keys(key, indices)
        condition, null = self.condition.of_labels(labels, frozen), self.condition.null(frozen)
        if isinstance(guidance_scale, tuple):
            guidance_scale = diffusion.interval(*guidance_scale)
        sampled = self.sampled(params, condition, null, guidance_scale, frozen)
        noise = self._start(keys, labels, time_grid, frozen)
        samples = self.sampler(
            sampled, self.process, noise, time_grid, keys=keys, trajectory=trajectory
        )
        return noise, samples

    def _start(
        self, keys: Key[Array, " batch"], labels: Array, time_grid: Array, frozen: PyTree
    ) -> Float[Array, " batch *shape"]:
        """Return what sampling starts from."""
        return self.process.prior(keys, self.space.shape, time_grid[0])

    def sampled(
        self, params: PyTree, condition: PyTree, null: PyTree, guidance_scale: Any, frozen: PyTree
    ) -> Callable:
        """Return what the sampler samples: the guided denoiser."""
        return diffusion.guide(self.denoiser(params, frozen), condition, null, guidance_scale)

    def denoiser(self, params: PyTree, frozen: PyTree = None) -> Callable:
        """Return `denoiser(x_t, t, condition)` of these parameters."""
        return self.objective.denoiser(self._apply(params, frozen))

    def with_prompts(self, prompts: Sequence[str]) -> "Diffusion":
        """Return the task whose labels stand for these prompts.

        Raises:
            ValueError: the network takes no prompts.
        """
        if not hasattr(self.condition, "prompts"):
            raise ValueError(
                f"this network takes no prompts: its condition is {type(self.condition).__name__}"
            )
        return replace(self, condition=replace(self.condition, prompts=tuple(prompts)))

    def variables(self, state: State, weights: str) -> dict[str, PyTree]:
        params = state.weights(weights)
        if self.adapters:
            params = self.adapters.apply(self.adapters.load(), params)
        return {"params": params}

    def sampling_inputs(self, sampling: Any) -> tuple:
        return self.abstract_sampling_inputs(sampling, {}, self.frozen())

    def abstract_sampling_inputs(self, sampling: Any, batch: dict, frozen: tuple) -> tuple:
        return guidance_of(sampling), time_grid(self.process, sampling), *frozen

    def num_evaluations(self, sampling: Any) -> int:
        """Return how often the sampler evaluates the network for one sample."""
        grid = time_grid(self.process, sampling)
        return len(jax.tree.leaves(evaluation_times(self.sampler, self.process, grid))[0])

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        found = {
            "sampler": described(sampling.sampler),
            "num_steps": sampling.num_steps,
            "grid": described(sampling.grid),
        }
        if getattr(self.condition, "is_empty", False):
            return found
        found["guidance_scale"] = sampling.guidance_scale
        if interval := interval_of(sampling):
            found["guidance_interval"] = list(interval)
        return found

    def functions(self, state: State, sampling: Any) -> dict[str, Callable]:
        """Return `reconstruct`, of bytes by the frozen autoencoder, where there is one."""
        return {"reconstruct": self._reconstruct} if self.space.autoencoder else {}

    def _reconstruct(self, images: np.ndarray) -> np.ndarray:
        frozen = self.space.frozen()
        return _reconstruct(self.space)(frozen, images)

    def _apply(
        self, params: PyTree, frozen: PyTree, rngs: Mapping[str, Key[Array, ""]] | None = None
    ) -> Callable:
        if self.adapters:
            params = self.adapters.apply(frozen["base"], params)
        return functools.partial(self.network.apply, {"params": params}, rngs=rngs)


def _check_adapted(network: nn.Module, fields: Mapping[str, Any]) -> None:
    """Raise ValueError if a frozen network has other classes than the condition.

    The label that stands for no class would be one of its classes.
    """
    for name, value in fields.items():
        if (own := getattr(network, name, value)) != value:
            raise ValueError(
                f"the network of config.adapters.source has {name} {own}, and config.condition "
                f"{value}: take data with these classes, or train all weights by --init_from"
            )


@functools.cache
def _reconstruct(space: Space) -> Callable:
    def reconstruct(frozen, x):
        return space.to_data(space.decode(space.encode(x, frozen), frozen))

    return jax.jit(reconstruct)


def _shapes(tree: PyTree) -> str:
    return ", ".join(str(list(a.shape)) for a in jax.tree.leaves(tree))
