"""Compare the ways from an image back to its latents: descent, joint training, an encoder."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.evaluation.context import Context, Model
from experiments.evaluation.images import draw
from experiments.inputs.datasets import labels_of
from genjax import adversarial
from genjax.training.pictures import paired_grid

STARTS = 256  # samples for each image; gradient descent starts at the nearest one
MOST_RUNS, ENOUGH_SECONDS = 3, 1.0  # of which the fastest run counts
OF_DESCENT = "gradient descent"


@dataclass(frozen=True)
class Inversions:
    """Measure how well, and how fast, each way finds the latents of an image.

    The ways are gradient descent from the nearest of `STARTS` samples, each encoder of the task,
    and gradient descent from what its first encoder finds. The entry `inversion` of the report has
    a dictionary for each way.

    - `reconstruction_error` is the mean square of G(E(x)) − x over held-out images, in [−1, 1].
    - `latent_error` is the mean square of E(G(z)) − z over generated images, divided by the
      variance of the latents. It is 1 for a constant answer. A generator with styles has latents w.
    - `milliseconds` is the time for one image, of `count` images at once.

    The first encoder's errors also stand in the report by themselves.

    Attributes:
        count: images, held-out and generated; at most `context.num_samples`.
        num_steps: of gradient descent from a sample.
        refinement_steps: of gradient descent from what the encoder finds.
    """

    context: Context
    count: int = 100
    num_steps: int = 500
    refinement_steps: int = 20
    needs: ClassVar[tuple[str, ...]] = ("inverses",)
    least_held_out: ClassVar[int] = 1

    def __call__(self, model: Model) -> dict[str, Any]:
        inverses, space = model.functions["inverses"], self.context.space
        source = self.context.data.held_out().source
        chosen = source[draw(len(source), min(self.count, self.context.num_samples))]
        images = jnp.asarray(space.encode(chosen[self.context.data.feature]))
        labels = jnp.asarray(labels_of(chosen)) if inverses.conditional else None
        # On the device before the clock starts: a transfer may take longer than an encoder.
        generator, variables = inverses.generator, jax.device_put(inverses.load())
        keys = jax.random.split(jax.random.key(0))

        latents = generator.draw(variables["generator"], keys[0], labels, len(images))
        show = jax.jit(lambda variables, latents: generator.images(variables, latents, labels))
        generated = show(variables["generator"], latents)
        table, pictures = {}, {"held out": space.to_data(images)}
        for name, find in self._ways(inverses).items():
            find = jax.jit(find).lower(variables, keys[1], images, labels).compile()
            found, seconds = _timed(find, variables, keys[1], images, labels)
            reconstructed = show(variables["generator"], found)
            again = find(variables, keys[1], generated, labels)
            error = jnp.square(again - latents).mean() / latents.var(axis=0).mean()
            table[name] = {
                "reconstruction_error": float(jnp.square(reconstructed - images).mean()),
                "latent_error": float(error),
                "milliseconds": 1000 * seconds / len(images),
            }
            pictures[name] = space.to_data(reconstructed)
        own = table[next(iter(inverses.encoders))]
        return {
            **{name: own[name] for name in ("reconstruction_error", "latent_error")},
            "inversion": table,
            "inversion_latents": "w" if generator.has_styles else "z",
            "inversion_steps": self.num_steps,
            "refinement_steps": self.refinement_steps,
            "inverted_images": len(images),
            "inversions": paired_grid({name: np.asarray(a)[:20] for name, a in pictures.items()}),
            **model.how,
        }

    def _ways(self, inverses: Any) -> dict[str, Callable]:
        """Return the functions `find(variables, key, images, labels) -> latents` by name."""

        def descend(variables, images, labels, start, num_steps):  # by the mean square of pixels
            images_of = inverses.generator.images
            generate = lambda latents: images_of(variables["generator"], latents, labels)
            return adversarial.invert(generate, images, start, num_steps).latents

        def from_sample(variables, key, images, labels):
            start = nearest_sample(inverses.generator, variables["generator"], key, images, labels)
            return descend(variables, images, labels, start, self.num_steps)

        def encoded(encode, variables, key, images, labels):
            return encode(variables, images, labels)

        def refined(variables, key, images, labels):
            start = inverses.encoders[first](variables, images, labels)
            return descend(variables, images, labels, start, self.refinement_steps)

        first = next(iter(inverses.encoders))
        encoders = {
            name: functools.partial(encoded, encode) for name, encode in inverses.encoders.items()
        }
        return {OF_DESCENT: from_sample, **encoders, f"{first}, then descent": refined}


def nearest_sample(
    generator: Any,
    variables: PyTree,
    key: Key[Array, ""],
    images: Float[Array, " batch *shape"],
    labels: Int[Array, " batch"] | None,
) -> Float[Array, "batch latent"]:
    """Return, for each image, the latents of the nearest of `STARTS` samples."""

    def nearest(inputs):
        key, image, label = inputs
        several = None if label is None else jnp.repeat(label, STARTS)
        latents = generator.draw(variables, key, several, STARTS)
        samples = generator.images(variables, latents, several)
        wanted = jnp.broadcast_to(image, samples.shape)
        return latents[jnp.argmin(adversarial.square_distance(samples, wanted))]

    return jax.lax.map(nearest, (jax.random.split(key, len(images)), images, labels))


def _timed(compiled: Callable, *args: PyTree) -> tuple[Array, float]:
    """Return the result of a compiled function, and the least seconds of a few calls."""
    seconds: list[float] = []
    while len(seconds) < MOST_RUNS and sum(seconds) < ENOUGH_SECONDS:
        began = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - began)
    return result, min(seconds)
