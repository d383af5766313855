"""From an image of a digit back to its latents: encoders of GANs on the digits of scikit-learn.

python -m experiments.train --config=configs/digits_gan_inverse.py:bigan --workdir=runs/digits_bigan
python -m experiments.train --config=configs/digits_gan_inverse.py:encoder \
    --workdir=runs/digits_encoder

The choice bigan trains generator, encoder and a discriminator of pairs (x, z) together. bigbigan
has a stochastic encoder and the hinge loss, and it also scores x alone and z alone.

encoder learns the inverse of a finished generator. By default that is runs/digits_gan_dcgan, a run
of configs/digits_gan.py:dcgan. `--config.generator_run=runs/digits_stylegan2` names another GAN's
run, which may be bidirectional. The latents of a StyleGAN2 are w.

At the end a run's report compares the ways back: gradient descent, the encoder, and both.

Not yet run to the end, so there are no scores.
"""

from ml_collections import ConfigDict

from configs.digits_gan import small_networks
from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("bigan", "bigbigan", "encoder")
SMALL = dict(width=64, doublings=2)


def get_config(choice: str = "bigan") -> ConfigDict:
    check_choice(choice, CHOICES)
    name, data = f"digits_gan_inverse_{choice}", dict(name="digits", image_shape=(8, 8, 1))
    if choice == "encoder":
        config = base.inversion(name, **data)
        config.generator_run = "runs/digits_gan_dcgan"
        config.model.update(SMALL)
        return config
    config = base.gan(name, "dcgan", **data)
    base.bidirectional(config)
    config.num_steps = 5000
    config.sampling.every = config.snapshot_every = config.evaluation.every = 1000
    config.model.generator.update(small_networks("dcgan")[0], image_channels=1)
    config.model.encoder.update(SMALL)
    config.model.discriminator.update(width=32, doublings=2, hidden=128)
    for penalty in config.regularizers.values():
        penalty.weight = 1.0
    if choice == "bigbigan":
        set_bigbigan(config)
    return config


def set_bigbigan(config: ConfigDict) -> None:
    """Set what BigBiGAN has and BiGAN has not."""
    config.objective, config.regularizers = "hinge", {}
    config.model.encoder.stochastic = True
    config.model.discriminator.update(unary=True, spectral_norm=True)
