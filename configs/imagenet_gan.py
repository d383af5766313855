"""Class-conditional GANs on ImageNet at 32 or 64 pixels with their authors' settings.

python -m experiments.train --config=configs/imagenet_gan.py:64 --workdir=runs/imagenet64_gan

The choices, for many accelerators:
- 32, 64: R3GAN (Huang et al. 2024, appendix D).
- sngan_64: conditional batch norm, spectral norm and a projection discriminator (Miyato & Koyama
  2018). The settings are those of the authors' code for 64 pixels.
- biggan_64: BigGAN (Brock et al. 2019). The networks are those of the authors' PyTorch code for 64
  pixels, and the settings are those of the paper for 128 pixels.

Differences from the papers. 32, 64: augmentation, average and β₂ are those of
configs/cifar10_gan.py. biggan_64: attention is at half the side of the images, as the paper has it
for 128 pixels. The paper stops each run before it collapses, so the number of steps here is a
guess.

biggan_64 has the paper's orthogonal regularization (section 3.1). The authors' PyTorch scripts set
it to 0, as `--config.regularizers.orthogonality.weight=0.0` does here.

Not yet run to the end, so there is no score.
"""

from ml_collections import ConfigDict

from configs.cifar10_gan import large_gan, r3gan
from experiments.configuration.choices import check_choice

CHOICES = ("32", "64", "sngan_64", "biggan_64")


def get_config(choice: str = "64") -> ConfigDict:
    check_choice(choice, CHOICES)
    model, _, size = choice.rpartition("_")
    side = int(size)
    data = dict(name=f"imagenet_resized/{side}x{side}", held_out_split="validation")
    experiment = f"imagenet_gan_{choice}"
    networks = "resnet_gan" if model else "r3gan"
    config = large_gan(networks, experiment, 1000, image_shape=(side, side, 3), **data)
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.per_class = 1
    config.evaluation.num_samples = 50_000
    if model:
        _without_penalties(config)
        {"sngan": _sngan, "biggan": _biggan}[model](config)
        return config
    config.batch_size, config.num_steps = 4096, 200_000
    stages = {"32": 4, "64": 5}[choice]
    r3gan(
        config,
        widths=(1536,) * stages,
        cardinalities=(96,) * stages,
        gamma={"32": 0.5, "64": 1.0}[choice],
        burn_in=200_000_000,
        average=50_000_000,
    )
    return config


def _without_penalties(config: ConfigDict) -> None:
    """Set the hinge loss of images as they are; spectral norm takes the penalties' place."""
    config.objective, config.regularizers = "hinge", dict()
    config.augmentations, config.data.flip = (), False


def _sngan(config: ConfigDict) -> None:
    """Set SNGAN with a projection discriminator, of 64 channels at the images' side."""
    widths = tuple(64 * multiple for multiple in (16, 8, 4, 2, 1))
    config.model.generator.update(widths=widths, latent_size=128, epsilon=2e-5)
    config.model.discriminator.update(widths=widths[::-1], halvings=5, wide=False)
    config.updates.discriminator, config.num_steps = 5, 250_000
    config.batch_size = 5 * 64  # 64 in each update
    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=2e-4, schedule="linear", hold=0.8, b2=0.9)
    del config.averages.ema
    config.sampling.weights = "params"


def _biggan(config: ConfigDict) -> None:
    """Set BigGAN of 96 channels."""
    widths = lambda *multiples: tuple(96 * multiple for multiple in multiples)
    shared = dict(latent_size=120, shared_features=128, attention=32, spectral_norm=True)
    config.model.generator.update(widths=widths(16, 16, 8, 4, 2), dtype="bfloat16", **shared)
    sizes = dict(widths=widths(1, 2, 4, 8, 16), halvings=4, attention=32, wide=True)
    config.model.discriminator.update(sizes, dtype="bfloat16")
    config.updates.discriminator, config.num_steps = 2, 150_000
    config.batch_size = 2 * 2048  # 2,048 in each update
    for player, rate in (("generator", 5e-5), ("discriminator", 2e-4)):
        config.optimizer[player].update(learning_rate=rate, schedule="constant", b2=0.999)
    config.regularizers.orthogonality = dict(weight=1e-4)
    config.averages.ema.steps = 6931.1  # a decay of 0.9999 per step
