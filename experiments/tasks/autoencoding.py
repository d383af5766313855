"""Autoencoders of images and video: with a divergence or a quantizer between, a perceptual loss and a discriminator."""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.evaluation.autoencoders import Originals, evaluate_reconstructions
from experiments.launch.opening import bind, lookup
from experiments.launch.sampling import make_averages
from experiments.tasks import trained as frozen_autoencoder
from experiments.tasks.adversarial import WALK_STEPS, Player, Regularizer
from genjax import adversarial, autoencoding
from genjax.adversarial import objectives, regularizers
from genjax.autoencoding import instruments, reconstruction
from genjax.data import flip_images, load_dataset, to_float, to_uint8
from genjax.metrics.lpips import LPIPS
from genjax.models.gans import patchgan
from genjax.nn import quantizers
from genjax.pretrained.lpips import load_lpips, require_lpips
from genjax.training import ema, group_norms, make_optimizer, update_average
from genjax.training.pictures import image_grid

SHOWN = 100  # held-out examples from which pictures are made


@flax.struct.dataclass
class State:
    step: Int[Array, ""]
    autoencoder: Player
    discriminator: Player | None
    averages: dict[str, PyTree]  # of the autoencoder's variables

    @property
    def params(self) -> dict[str, PyTree]:
        both = {"autoencoder": self.autoencoder, "discriminator": self.discriminator}
        return {name: player.params for name, player in both.items() if player is not None}

    def weights(self, name: str) -> PyTree:
        """Variables: "params" are those of the last step, others the averages."""
        return {"params": self.autoencoder.variables, **self.averages}[name]


@dataclass(frozen=True)
class Adversary:
    """A discriminator and what it means to the autoencoder.

    Attributes:
        weight: of the generator's loss; times `autoencoding.adaptive_weight` where `adaptive`.
        start_step: until which neither learns of the other. The discriminator stays as it was made, its optimizer too.
        r1: the penalty of the mean logit of real images.
    """

    network: nn.Module
    objective: adversarial.Objective
    weight: float
    adaptive: bool
    start_step: int
    r1: Regularizer | None
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


@dataclass(frozen=True)
class Autoencoder:
    """What minimizes a weighted sum of distances between reconstruction and original, of what its bottleneck costs, and
    of a discriminator's displeasure (Esser et al. 2021, "VQGAN"; Rombach et al. 2022, "Latent diffusion").

    The loss's terms are means over pixel values, so that a weight means the same at every size:

    - the reconstruction's distance, whose weight is 1;
    - "perceptual": LPIPS;
    - "divergence": of Gaussian latents, KL(q ‖ N(0, I)) of an image in nats, over the number of its pixel values;
    - those of the quantizer.

    A video's frames are images to LPIPS and to the discriminator.
    """

    network: nn.Module
    perceptual: LPIPS
    feature: str
    image_shape: tuple[int, ...]
    flip: bool
    distance: Callable
    weights: tuple[tuple[str, float], ...]
    adversary: Adversary | None
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    averages: tuple[tuple[str, ema.HalfLife | ema.PowerFunction], ...]
    held_out: tuple[str, str, str | None]

    @classmethod
    def from_config(cls, config: Any) -> "Autoencoder":
        """Raises ValueError on names that do not exist, weights of terms that the network does not have, terms without a
        weight, and sizes that it does not reconstruct; ImportError without LPIPS' weights, by which it is evaluated."""
        if config.evaluation:
            require_lpips()
        if config.accumulation_steps != 1:
            raise ValueError(
                "config.accumulation_steps must be 1 for an autoencoder, whose quantizer sees whole batches"
            )
        fields = dict(config.model)
        try:
            module = importlib.import_module(f"genjax.models.autoencoders.{fields.pop('module')}")
        except ModuleNotFoundError:
            raise ValueError(
                f"config.model.module is {config.model.module!r}, which is no module of genjax.models; the "
                "autoencoders there are autoencoder_kl, autoencoder_tiny, autoencoder_vit, autoencoder_wan, "
                "temporal_autoencoder, vqgan"
            ) from None
        if "quantizer" in fields:
            fields["quantizer"] = bind(quantizers, fields["quantizer"], "model.quantizer")()
        optimizer, schedule = make_optimizer(**config.optimizer.autoencoder, num_steps=config.num_steps)
        task = cls(
            network=bind(module, fields, "model")(),
            perceptual=LPIPS(),
            feature=config.data.feature,
            image_shape=tuple(config.data.image_shape),
            flip=config.data.flip,
            distance=bind(reconstruction, config.reconstruction, "reconstruction"),
            weights=tuple((name, weight) for name, weight in config.weights.items() if weight),
            adversary=_adversary(config) if config.adversary.weight else None,
            optimizer=optimizer,
            schedule=schedule,
            averages=make_averages(config),
            held_out=(config.data.name, config.data.held_out_split, config.data.directory),
        )
        task._check(config.weights)
        return task

    def _check(self, weights: Mapping[str, float]) -> None:
        example = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)

        def reconstruct(key, x):
            variables = self.network.init(key, x)
            return self._reconstruct(variables["params"], variables, x, key)[0]

        y, terms = jax.eval_shape(reconstruct, jax.random.key(0), example)
        if y.shape != example.shape:
            raise ValueError(
                f"config.data.image_shape is {self.image_shape}, which {type(self.network).__name__} reconstructs as "
                f"{y.shape[1:]}: take sides that are multiples of {self.network.factor}, and as many channels as it makes"
            )
        with_weight = {*terms, "perceptual"}
        if with_weight - {"perceptual"} - set(weights) or set(weights) - with_weight:
            raise ValueError(
                f"config.weights has {', '.join(sorted(weights))}; {type(self.network).__name__} needs "
                f"{', '.join(sorted(with_weight))}, of which 0 leaves a term out"
            )

    def frozen(self) -> tuple:
        """The variables of LPIPS, if it has a weight."""
        return (load_lpips()[1],) if "perceptual" in dict(self.weights) else ()

    def abstract_frozen(self) -> tuple:
        """What `frozen` would load, in shapes."""
        if "perceptual" not in dict(self.weights):
            return ()
        images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        return (jax.eval_shape(self.perceptual.init, jax.random.key(0), images, images),)

    def init(self, key: Key[Array, ""]) -> State:
        keys = jax.random.split(key)
        example = jnp.zeros((1, *self.image_shape))
        kept = dict(self.network.init(keys[0], example))
        params = kept.pop("params")
        autoencoder = Player(params, kept, self.optimizer.init(params))
        discriminator = None
        if self.adversary:
            kept = dict(self.adversary.network.init(keys[1], _frames(example)))
            params = kept.pop("params")
            discriminator = Player(params, kept, self.adversary.optimizer.init(params))
        return State(
            step=jnp.int32(0),
            autoencoder=autoencoder,
            discriminator=discriminator,
            averages={name: jax.tree.map(jnp.copy, autoencoder.variables) for name, _ in self.averages},
        )

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], lpips: PyTree = None
    ) -> tuple[State, dict[str, Float[Array, ""]]]:
        x = batch[self.feature]
        flip_key, code_key = jax.random.split(key)
        if self.flip:
            x = flip_images(flip_key, _beneath(x)).reshape(x.shape)  # a video as one picture
        x = to_float(x)
        player, weights = state.autoencoder, dict(self.weights)

        (y, terms), pull_back, (kept, measured) = jax.vjp(
            lambda params: self._reconstruct(params, player.variables, x, code_key, train=True),
            player.params,
            has_aux=True,
        )

        def unlike(y):
            distance = self.distance(y, x).mean()
            if lpips is None:
                return distance, {"loss/reconstruction": distance}
            perceptual = self.perceptual.apply(lpips, _frames(y), _frames(x)).mean()
            loss = distance + weights["perceptual"] * perceptual
            return loss, {"loss/reconstruction": distance, "loss/perceptual": perceptual}

        (loss, metrics), by_images = jax.value_and_grad(unlike, has_aux=True)(y)
        of_terms = {name: weights.get(name, 0.0) for name in terms}
        loss += sum(of_terms[name] * value for name, value in terms.items())
        metrics |= measured | {f"loss/{name}": value for name, value in terms.items()}

        discriminator = state.discriminator
        if self.adversary:

            def last_layer(by_images):  # of which nothing but that layer's gradient is computed
                (gradients,) = pull_back((by_images, jax.tree.map(jnp.zeros_like, terms)))
                return gradients["decoder"]["conv_out"]

            displeasure, by_adversary = jax.value_and_grad(
                lambda y: self._displeasure(state.discriminator, x, y)
            )(y)
            weight = self.adversary.weight * (state.step >= self.adversary.start_step)
            if self.adversary.adaptive:
                weight *= autoencoding.adaptive_weight(last_layer(by_images), last_layer(by_adversary))
            by_images += weight * by_adversary
            loss += weight * displeasure
            metrics |= {"loss/adversarial": displeasure, "weight/adversarial": weight}
            own_step = jnp.maximum(state.step - self.adversary.start_step, 0)
            metrics["learning_rate_of_discriminator"] = self.adversary.schedule(own_step)
            discriminator, more = self._update_discriminator(state.discriminator, state.step, x, y)
            metrics |= more

        (gradients,) = pull_back((by_images, jax.tree.map(jnp.float32, of_terms)))
        updates, optimizer_state = self.optimizer.update(gradients, player.optimizer_state, player.params)
        autoencoder = Player(optax.apply_updates(player.params, updates), kept, optimizer_state)
        return State(
            step=state.step + 1,
            autoencoder=autoencoder,
            discriminator=discriminator,
            averages={
                name: update_average(state.averages[name], autoencoder.variables, state.step, rule)
                for name, rule in self.averages
            },
        ), {
            "loss": loss,
            **metrics,
            "learning_rate": self.schedule(state.step),
            **group_norms("norm/gradient", gradients),
            **group_norms("norm/parameter", autoencoder.params),
            **group_norms("norm/update", updates),
        }

    def _reconstruct(self, params, variables, x, key, train=False):
        """The reconstruction and the bottleneck's terms of the loss; what the network keeps, and measures."""
        apply = lambda *args, method, **options: self.network.apply(
            variables | {"params": params}, *args, method=method, **options
        )
        kept = {name: value for name, value in variables.items() if name != "params"}
        encoded = apply(x, method="encode")
        if isinstance(encoded, tuple):
            z = autoencoding.sample_posterior(key, *encoded)
            nats = autoencoding.divergence(*encoded).sum() / len(x)
            return (self._trim(apply(z, method="decode")), {"divergence": nats / x[0].size}), (kept, {})
        if not hasattr(self.network, "quantize"):
            return (self._trim(apply(encoded, method="decode")), {}), (kept, {})
        quantized, kept = apply(
            encoded, method="quantize", train=train, mutable=list(kept), rngs={"restart": key}
        )
        counts = instruments.codebook_counts(quantized.indices, self.network.quantizer.num_codes)
        measured = {"codebook/batch_usage": instruments.usage(counts)}
        measured |= {"codebook/batch_perplexity": instruments.perplexity(counts)}
        y = self._trim(apply(quantized.latents, method="decode"))
        return (y, quantized.losses), (dict(kept), measured)

    def _trim(self, decoded):
        """Of videos, no more frames than the data have: a last latent frame may stand for more."""
        return decoded[:, : self.image_shape[0]] if len(self.image_shape) == 4 else decoded

    def _judge(self, params, kept, x):
        """Logits of all patches of all frames in training, and what the discriminator keeps after them."""
        logits, kept = self.adversary.network.apply(
            {"params": params, **kept}, _frames(x), train=True, mutable=list(kept)
        )
        return logits, dict(kept)

    def _displeasure(self, player, x, y):
        real, fake = (self._judge(player.params, player.kept, images)[0].reshape(-1) for images in (x, y))
        return self.adversary.objective.generator(real, fake).mean()

    def _update_discriminator(self, player, step, x, y):
        adversary, y = self.adversary, jax.lax.stop_gradient(y)

        def loss_of(params):
            real, kept = self._judge(params, player.kept, x)
            fake, kept = self._judge(params, kept, y)
            real, fake = real.reshape(-1), fake.reshape(-1)
            loss = adversary.objective.discriminator(real, fake).mean()
            metrics = {"loss/discriminator": loss, "logit/real": real.mean(), "logit/fake": fake.mean()}
            metrics |= adversarial.instruments.accuracies(adversary.objective, real, fake)
            if adversary.r1:
                weight, every = adversary.r1.weight_at(step), adversary.r1.every
                critic = lambda x: self._judge(params, player.kept, x)[0].mean((1, 2))
                penalty = regularizers.lazily(
                    step,
                    every,
                    lambda: adversarial.gradient_penalty(critic, _frames(x)).mean(),
                    jnp.zeros(()),
                )
                loss += weight * every * penalty
                metrics["regularizer/r1"] = weight * every * penalty
            return loss, (kept, metrics)

        gradients, (kept, metrics) = jax.grad(loss_of, has_aux=True)(player.params)
        updates, optimizer_state = adversary.optimizer.update(
            gradients, player.optimizer_state, player.params
        )
        after = Player(optax.apply_updates(player.params, updates), kept, optimizer_state)
        started = step >= adversary.start_step
        after = jax.tree.map(lambda new, old: jnp.where(started, new, old), after, player)
        norms = {
            "norm/gradient_of_discriminator": optax.tree.norm(gradients),
            "norm/parameter_of_discriminator": optax.tree.norm(after.params),
        }
        return after, metrics | norms

    def encode(
        self, variables: PyTree, x: Float[Array, " batch *shape"]
    ) -> Float[Array, " batch *latent_shape"]:
        return frozen_autoencoder.encode(self.network, variables, x)

    def decode(
        self, variables: PyTree, latents: Float[Array, " batch *latent_shape"]
    ) -> Float[Array, " batch *shape"]:
        return self._trim(frozen_autoencoder.decode(self.network, variables, latents))

    def generate(
        self,
        state: State,
        key: Key[Array, ""],
        labels: Int[Array, " batch"],
        indices: Int[Array, " batch"],
        originals: Array,
        *,
        weights: str = "params",
        trajectory: bool = False,
    ) -> Float[Array, " batch *shape"] | Float[Array, " frames batch *frame_shape"]:
        """Reconstructions of originals, in turn; labels and key count for nothing.

        Args:
            weights: as of `State.weights`.
            originals: bytes, of the data's form.
            trajectory: of images, a walk of straight lines through the latents from others to these; of video, its frames.
        """
        variables = state.weights(weights)
        z = self.encode(variables, to_float(originals[indices % len(originals)]))
        if not trajectory:
            return self.decode(variables, z)
        if len(self.image_shape) == 4:
            return jnp.moveaxis(self.decode(variables, z), 1, 0)
        stops = jnp.stack([jnp.roll(z, 1, axis=0), z])
        return jax.lax.map(
            functools.partial(self.decode, variables),
            adversarial.walk(stops, WALK_STEPS, adversarial.lerp),
        )

    as_data = staticmethod(to_uint8)
    reference = staticmethod(Originals)

    @property
    def animation(self) -> str:
        return "latent_walk.gif" if len(self.image_shape) == 3 else "reconstruction.gif"

    @staticmethod
    def picture(examples: np.ndarray, columns: int):
        """Images in a grid; videos as strips of their frames, one a row."""
        if examples.ndim == 4:
            return image_grid(examples, columns)
        return image_grid(rearrange(examples, "n t h w c -> n h (t w) c"), 1)

    def sampling_inputs(self, sampling: Any) -> tuple[Array]:
        return (_shown(*self.held_out, self.feature),)

    def describe_sampling(self, sampling: Any) -> dict[str, Any]:
        return {"sampler": "reconstruction of held-out examples"}

    def evaluate(self, state: State, config: Any, reference: Originals) -> dict[str, Any]:
        return evaluate_reconstructions(self, state, config, reference)

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        return instruments.alarms(metrics) + [
            sentence
            for sentence in adversarial.alarms(metrics)
            if not sentence.startswith("Not finite")  # said by the other
        ]


@functools.cache
def _shown(name: str, split: str, directory: str | None, feature: str) -> np.ndarray:
    return load_dataset(name, split, directory).source[:SHOWN][feature]


def _beneath(
    x: Float[Array, "batch *time height width channels"],
) -> Float[Array, "batch rows width channels"]:
    """The frames of each video beneath each other."""
    return x.reshape(len(x), -1, *x.shape[-2:])


def _frames(x: Float[Array, "*batch height width channels"]) -> Float[Array, "frames height width channels"]:
    return x.reshape(-1, *x.shape[-3:])


def _adversary(config: Any) -> Adversary:
    fields = dict(config.adversary)
    optimizer, schedule = make_optimizer(**config.optimizer.discriminator, num_steps=config.num_steps)
    network, r1 = fields.pop("network"), fields.pop("r1")
    return Adversary(
        network=bind(patchgan, {"name": "Discriminator", **network}, "adversary.network")(),
        objective=lookup(objectives, fields.pop("objective"), "adversary.objective"),
        r1=Regularizer(**r1) if r1["weight"] else None,
        optimizer=optimizer,
        schedule=schedule,
        **fields,
    )
