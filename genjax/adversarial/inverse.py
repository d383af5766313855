"""A learned inverse of a generator: the losses of bidirectional GANs, and those of an encoder.

The discriminator of a bidirectional GAN sees pairs. A real pair is (x, E(x)), and a generated pair
is (G(z), z). At the optimum the two joint distributions are equal, and E is the inverse of G almost
everywhere. Sources: Donahue et al. 2016, "Adversarial feature learning", section 3. Dumoulin et al.
2016, "Adversarially learned inference", section 2.

A discriminator gives one or more scores of a pair, `[batch terms]`. BiGAN and ALI have one, of the
pair. BigBiGAN has three, of x alone, of z alone and of the pair (Donahue & Simonyan 2019, "Large
scale adversarial representation learning", section 2). Its losses are sums over these terms.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.adversarial.objectives import Objective

Scores = Float[Array, "batch terms"]


def joint_discriminator_loss(
    objective: Objective, real: Scores, fake: Scores
) -> Float[Array, " batch"]:
    """Return the discriminator's loss, summed over the terms of its scores.

    With `hinge` it is BigBiGAN's ℓ_D.

    Args:
        real: scores of pairs (x, E(x)).
        fake: scores of pairs (G(z), z).
    """
    return jax.vmap(objective.discriminator, 1, 1)(real, fake).sum(axis=1)


def joint_generator_loss(
    objective: Objective, real: Scores, fake: Scores
) -> Float[Array, " batch"]:
    """Return the loss of generator and encoder together, summed over the terms of the scores.

    The generator makes generated pairs look real, and the encoder makes real pairs look generated.
    So the encoder's loss is the generator's, with both scores mirrored at the objective's boundary
    and exchanged. With `saturating` the sum is V, which both descend. With `non_saturating` the sum
    is the loss with swapped labels (Donahue et al. 2016, section 3). With `hinge` it is BigBiGAN's
    ℓ_EG.

    Args:
        real: scores of pairs (x, E(x)).
        fake: scores of pairs (G(z), z).
    """
    mirror = lambda logits: 2 * (objective.boundary or 0.0) - logits
    loss_of = jax.vmap(objective.generator, 1, 1)
    return (loss_of(real, fake) + loss_of(mirror(fake), mirror(real))).sum(axis=1)


class EncoderLosses(NamedTuple):
    """The losses of an encoder, one per example, `[batch]`.

    Attributes:
        latents: the mean square of E(G(z)) − z.
        images: the distance of G(E(x)) to x.
        reconstructions: G(E(x)), for further distances.
    """

    latents: Float[Array, " batch"]
    images: Float[Array, " batch"]
    reconstructions: Float[Array, " batch *shape"]


def encoder_losses(
    encode: Callable[[Float[Array, " batch *shape"]], Float[Array, "batch features"]],
    generate: Callable[[Float[Array, "batch features"]], Float[Array, " batch *shape"]],
    latents: Float[Array, "batch features"],
    images: Float[Array, " batch *shape"],
    distance: Callable,
) -> EncoderLosses:
    """Return the losses of an encoder that learns the inverse of a finished generator.

    The error of latents is measured on generated images, and the error of images on real ones (Zhu
    et al. 2016, "Generative visual manipulation on the natural image manifold", section 3.1).

    Args:
        latents: as the generator takes them, z or w.
        distance: `(reconstructions, images) -> [batch]`.
    """
    found = encode(jax.lax.stop_gradient(generate(latents)))
    reconstructions = generate(encode(images))
    return EncoderLosses(
        latents=jnp.square(found - latents).mean(axis=1),
        images=distance(reconstructions, images),
        reconstructions=reconstructions,
    )
