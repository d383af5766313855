"""The latents of a trained generator: walks, style mixing, directions, inversion and smoothness."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree


def lerp(
    start: Float[Array, " batch *shape"],
    end: Float[Array, " batch *shape"],
    weight: float | Float[Array, ""],
) -> Float[Array, " batch *shape"]:
    """Return (1 − weight)·start + weight·end.

    Interpolate so in W. In Z use `genjax.diffusion.slerp`, because a straight line in Z passes
    through lengths that no latent has.
    """
    return (1 - weight) * start + weight * end


def walk(
    stops: Float[Array, " stops *shape"], steps: int, interpolation: Callable = lerp
) -> Float[Array, " points *shape"]:
    """Return latents along a path through all stops, with `steps` steps between neighbouring stops.

    These are (stops − 1)·steps + 1 latents, ends included.
    """
    weights = jnp.arange(steps) / steps
    parts = jax.vmap(lambda weight: interpolation(stops[:-1], stops[1:], weight), out_axes=1)(
        weights
    )
    return jnp.concatenate([parts.reshape(-1, *stops.shape[1:]), stops[-1:]])


def mix_styles(
    coarse: Float[Array, "batch styles features"],
    fine: Float[Array, "batch styles features"],
    crossover: int,
) -> Float[Array, "batch styles features"]:
    """Return the first `crossover` styles of `coarse`, followed by the other styles of `fine`.

    Karras et al. 2019, "StyleGAN", section 3.1.
    """
    return jnp.concatenate([coarse[:, :crossover], fine[:, crossover:]], axis=1)


def closed_form_directions(
    kernels: list[Float[Array, "features _"]],
) -> tuple[Float[Array, "directions features"], Float[Array, " directions"]]:
    """Return the directions in W that change the layers' styles most.

    Shen & Zhou 2021, "SeFa", equations 4 to 6.

    Args:
        kernels: the kernels `[features out]` of the affine maps from w to styles, for the layers to
            change.

    Returns:
        The unit eigenvectors of A·Aᵀ and its eigenvalues, largest first. A holds the kernels side
        by side, with columns of length 1 as in the authors' program.
    """
    joined = jnp.concatenate(kernels, axis=1)
    lengths = jnp.linalg.norm(joined, axis=0)
    joined = joined / jnp.where(lengths > 0, lengths, 1)  # StyleGAN3 starts with columns of 0
    values, vectors = jnp.linalg.eigh(jnp.matmul(joined, joined.T, precision="highest"))
    return vectors.T[::-1], values[::-1]


def principal_directions(
    latents: Float[Array, "samples features"],
    activations: Float[Array, "samples units"] | None = None,
) -> tuple[Float[Array, "directions features"], Float[Array, " directions"]]:
    """Return the directions of the latents along which activations vary most.

    Härkönen et al. 2020, "GANSpace", sections 2.1 and 2.2. The columns of V in P·S·Vᵀ, the centred
    activations, are the principal components. Least squares from their coordinates P·S back to the
    latents give S⁻¹·Pᵀ·latents, whose rows are the directions.

    Args:
        latents: sampled z or w.
        activations: of a layer, for these latents. None takes the latents themselves, as GANSpace
            does in W.

    Returns:
        Unit directions, and the variances of the principal components, largest first. There are as
        many as features, units or samples less one, whichever are fewest.
    """
    activations = latents if activations is None else activations
    left, singular, _ = jnp.linalg.svd(activations - activations.mean(axis=0), full_matrices=False)
    count = min(latents.shape[1], len(latents) - 1)  # centred samples have this rank at most
    directions = jnp.matmul(left.T, latents, precision="highest")[:count]
    variances = singular[: len(directions)] ** 2 / (len(latents) - 1)
    return directions / jnp.linalg.norm(directions, axis=1, keepdims=True), variances


class Inversion(NamedTuple):
    """The latents of an inversion, and the distance before each step, `[steps batch]`."""

    latents: PyTree
    distances: Float[Array, "steps batch"]


def square_distance(
    a: Float[Array, " batch *shape"], b: Float[Array, " batch *shape"]
) -> Float[Array, " batch"]:
    """Return the mean of squared differences of each pair."""
    return jnp.mean(jnp.square(a - b), axis=range(1, a.ndim))


def invert(
    generate: Callable[[PyTree], Float[Array, " batch *shape"]],
    images: Float[Array, " batch *shape"],
    start: PyTree,
    num_steps: int,
    *,
    learning_rate: float = 0.1,
    distance: Callable = square_distance,
) -> Inversion:
    """Find latents from which `generate` makes these images, by gradient descent with Adam.

    The latents are in Z, W or W+, as `generate` and `start` are. W+ gives each style its own w and
    fits more images (Abdal et al. 2019, "Image2StyleGAN"). The learning rate rises over a twentieth
    of the steps and falls as a cosine over the last quarter (Karras et al. 2020, "StyleGAN2",
    appendix D).

    Args:
        generate: `latents -> [batch …]`.
        start: the first latents, an array or a tree.
        distance: `(generated, images) -> [batch]`, of pixels or of a network's features.
    """
    rate = lambda step: (
        learning_rate
        * jnp.minimum(
            jnp.minimum(1, (step + 1) / max(1, num_steps // 20)),
            0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(1, (1 - step / num_steps) / 0.25)),
        )
    )
    optimizer = optax.adam(rate)

    def loss(latents):
        distances = distance(generate(latents), images)
        return distances.sum(), distances

    def step(carry, _):
        latents, state = carry
        gradient, distances = jax.grad(loss, has_aux=True)(latents)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(latents, updates), state), distances

    (latents, _), distances = jax.lax.scan(step, (start, optimizer.init(start)), length=num_steps)
    return Inversion(latents, distances)


def perceptual_path_length(
    key: Key[Array, ""],
    generate: Callable[[Float[Array, " batch *shape"]], Float[Array, " batch *image"]],
    start: Float[Array, " batch *shape"],
    end: Float[Array, " batch *shape"],
    *,
    interpolation: Callable = lerp,
    distance: Callable = square_distance,
    epsilon: float = 1e-4,
) -> Float[Array, " batch"]:
    """Return d(G(x(t)), G(x(t + ε)))/ε² at a uniform t between each pair of latents, `[batch]`.

    Its mean over pairs is the perceptual path length (Karras et al. 2019, "StyleGAN", section 4.1).
    The authors' program leaves the lowest and the highest percent of pairs out of the mean, crops
    faces, and reduces images to 256 pixels a side.

    Args:
        distance: a squared distance, so that the quotient has a limit; LPIPS in the paper.
    """
    t = jax.random.uniform(key, (len(start),))

    def images_at(t):
        point = jax.vmap(lambda a, b, weight: interpolation(a[None], b[None], weight)[0])(
            start, end, t
        )
        return generate(point)

    return distance(images_at(t), images_at(t + epsilon)) / epsilon**2
