"""Class-conditional GANs on the handwritten digits inside scikit-learn, 8×8 pixels.

python -m experiments.train --config=configs/digits_gan.py:r3gan --workdir=runs/digits_gan_r3gan

The choice is dcgan, stylegan2, r3gan or vit_gan, all with R3GAN's loss (relativistic, R1 and R2).
Results on 2 CPU cores, shared with other programs except for dcgan:

choice             steps  seconds  accuracy  Fréchet distance  precision / recall  duplicates
dcgan              1,000  26       99.2 %    0.998             0.90 / 0.69         4.4 %
stylegan2          2,000  441      96.8 %    1.93              0.95 / 0.24         3.6 %
r3gan              1,500  452      98.8 %    1.59              0.91 / 0.44         6.4 %
vit_gan            1,500  175      97.9 %    1.95              0.90 / 0.23         16 %
(training images)                            0.718             0.92 / 0.89         1 %

stylegan2 had one core, and the run of r3gan is not on record. All are measured on 1,000 samples of
the averaged weights with balanced labels. Accuracy is the share of samples in the requested class.
Duplicates are samples that are nearer to another sample than 99 % of held-out images are to another
held-out image. vit_gan's report warns of its duplicates. Pictures: samples.png and latent_walk.gif
in the run's folder.
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("dcgan", "stylegan2", "r3gan", "vit_gan")


def get_config(choice: str = "r3gan") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = base.gan(f"digits_gan_{choice}", choice, name="digits", image_shape=(8, 8, 1))
    config.snapshot_every = 500
    config.sampling.every = 250
    settings = {"dcgan": (1000, 1.0, 1e-3), "stylegan2": (2000, 3.0, 2.5e-3)}
    config.num_steps, weight, learning_rate = settings.get(choice, (1500, 0.2, 1e-3))
    for penalty in config.regularizers.values():
        penalty.weight = weight
    for player in config.optimizer.values():
        player.learning_rate = learning_rate
    generator, discriminator = small_networks(choice)
    config.model.generator.update(generator, image_channels=1)
    config.model.discriminator.update(discriminator)
    return config


def small_networks(choice: str) -> tuple[dict, dict]:
    """Return the fields of a generator and a discriminator for images of 8×8 pixels."""
    if choice == "r3gan":
        sizes = dict(widths=(64, 32), cardinalities=(16, 8), blocks=(1, 1))
        mirrored = {name: size[::-1] for name, size in sizes.items()}
        latents = dict(latent_size=32, embedding_features=16)
        return dict(sizes, **latents), dict(mirrored, embedding_features=64)
    if choice == "vit_gan":
        sizes = dict(patch_size=2, width=64, depth=2, num_heads=2, unroll=2)
        return dict(sizes, resolution=8, latent_size=32), sizes
    if choice == "stylegan2":
        sizes = dict(resolution=8, channel_base=256, channel_max=64, mapping_layers=2)
        return dict(sizes, latent_size=64, w_size=64, style_mixing=0.5), dict(sizes, group_size=8)
    sizes = dict(width=32, doublings=2)
    return dict(sizes, start=2, latent_size=32), sizes
