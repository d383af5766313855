"""Class-conditional GANs on Fashion-MNIST, 60,000 pictures of clothes of 28×28 pixels.

python -m experiments.train --config=configs/fashion_gan.py:r3gan --workdir=runs/fashion_gan_r3gan

The choices dcgan and r3gan have the losses of digits_gan. Results on 2 CPU cores shared with other
programs:

choice             steps  time    accuracy  Fréchet distance  precision / recall  duplicates
dcgan              3,000  12 min  86.0 %    24.8              0.49 / 0.33         1.9 %
r3gan              1,500  13 min  79.5 %    38.2              0.40 / 0.06         4.9 %
(training images)                           8.27              0.79 / 0.75         1 %

All are measured on 2,000 samples of the averaged weights with balanced labels. The classifier gets
85.1 % of held-out images right. Duplicates are samples that are nearer to another sample than 99 %
of held-out images are to another held-out image. r3gan's report warns of its recall. Both runs were
still improving. Pictures: samples.png and latent_walk.gif in the run's folder.

The choices stylegan2 and stylegan3 compare two generators at equal steps and at equal time, on
images enlarged to 32×32 pixels:
- Both have StyleGAN2's discriminator and loss, without path length.
- The generator of stylegan2 is configuration B in figure 3 of "StyleGAN3" (Karras et al. 2021). It
  starts from plane waves, so that its equivariance can be measured.
- The generator of stylegan3 is configuration T. The paper blurs the discriminator's first images
  for configuration R alone, so there is no blur here.

600 steps on one shared core are too few for either to make good pictures. In these runs of 600
steps, the average had a half-life of 200 steps, where the config now has 100. The core was busier
in the run of 3,300 steps, which --config.num_steps=3300 repeats:

choice     steps  time    EQ-T  EQ-T of fractions  EQ-R  accuracy  Fréchet distance
stylegan2  600    5 min   13.1  12.6 dB            9.5   30.8 %    144
           3,300  37 min  13.2  12.7 dB            8.2   67.9 %    81.7
stylegan3  600    28 min  91.4  48.8 dB            11.7  24.6 %    152
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("dcgan", "r3gan", "stylegan2", "stylegan3")


def get_config(choice: str = "r3gan") -> ConfigDict:
    check_choice(choice, CHOICES)
    if choice.startswith("stylegan"):
        return styles(choice)
    config = base.gan(
        f"fashion_gan_{choice}", choice, name="fashion_mnist", image_shape=(28, 28, 1)
    )
    config.snapshot_every = 500
    config.sampling.every = 250
    config.evaluation.update(every=1500, num_samples=2000)  # takes a minute
    config.model.generator.update(start=7, latent_size=32, image_channels=1)
    if choice == "r3gan":
        sizes = dict(widths=(48, 24, 12), cardinalities=(4, 2, 1), blocks=(1, 1, 1))
        mirrored = {name: size[::-1] for name, size in sizes.items()}
        config.model.generator.update(sizes, embedding_features=16)
        config.model.discriminator.update(mirrored, start=7, embedding_features=64)
        return config
    config.num_steps = 3000
    for network in config.model.values():
        network.update(width=32, doublings=2)
    for penalty in config.regularizers.values():
        penalty.weight = 0.3
    return config


def styles(choice: str) -> ConfigDict:
    """Return the config of a generator with styles, whose equivariance is measured."""
    config = base.gan(
        f"fashion_gan_{choice}",
        choice,
        name="fashion_mnist",
        image_shape=(32, 32, 1),
        resize=True,
    )
    config.num_steps, config.batch_size = 600, 32
    config.averages.ema.steps = 100.0
    config.snapshot_every = config.sampling.every = 200
    sizes = dict(resolution=32, channel_base=512, channel_max=32)
    latents = dict(latent_size=64, w_size=64, mapping_layers=2, image_channels=1)
    config.model.discriminator.update(sizes, name="stylegan2.Discriminator", mapping_layers=2)
    config.model.generator.update(latents)
    if choice == "stylegan2":
        config.model.generator.update(
            resolution=32, channel_base=1024, channel_max=64, fourier_input=True, style_mixing=0.0
        )
    else:
        layers = dict(num_layers=6, num_critical=2, channel_base=512, channel_max=16)
        config.model.generator.update(layers, resolution=32)
    config.objective = "non_saturating"
    config.regularizers = dict(r1=dict(weight=0.5, every=16))
    for player, rate in dict(generator=2.5e-3, discriminator=2e-3).items():
        config.optimizer[player].learning_rate = rate
    config.evaluation.update(every=0, num_samples=2000)
    config.evaluation.measures.equivariance = dict(name="Equivariance", num_samples=256)
    return config
