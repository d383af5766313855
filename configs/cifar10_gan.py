"""Class-conditional GANs on CIFAR-10 with their authors' settings, for accelerators.

python -m experiments.train --config=configs/cifar10_gan.py:r3gan --workdir=runs/cifar10_gan_r3gan

The choices:
- r3gan: Huang et al. 2024, appendix D.
- stylegan2: the "cifar" settings of StyleGAN2-ADA (Karras et al. 2020, appendix D).

Differences from the papers: r3gan has DiffAugment instead of the changes of ADA, whose probability
the authors raise by a schedule. The half-life of the average and β₂ have their final values from
the start. The generator's step compares with the real images of the discriminator's step, and the
authors draw others. stylegan2 adds lazy penalties to the loss of a step. All its convolutions are
bfloat16, and the authors' are float16 in the four highest resolutions. Its average of w is averaged
too, and the authors copy the last one.

Not yet run to the end, so there is no score.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("r3gan", "stylegan2")


def large_gan(networks: str, experiment: str, num_classes: int = 10, /, **data: Any) -> ConfigDict:
    """Return the settings that GANs for accelerators share: DiffAugment, and how often to save.

    Args:
        networks: a module of genjax/models/gans.
        data: fields of `config.data`.
    """
    config = base.gan(experiment, networks, num_classes, flip=True, **data)
    config.augmentations = ("color", "translation", "cutout")
    config.snapshot_every = 50_000
    config.checkpoint.every = 10_000
    config.sampling.update(every=10_000, batch_size=64)
    config.evaluation.update(every=50_000, num_samples=10_000)
    return config


def r3gan(
    config: ConfigDict,
    *,
    widths: tuple[int, ...],
    cardinalities: tuple[int, ...],
    float32_stages: int = 1,
    gamma: float,
    burn_in: int,
    average: int,
) -> None:
    """Set R3GAN with the generator's `widths` and `cardinalities`, two blocks in every stage.

    Args:
        gamma: the initial weight of R1 and R2; a tenth of it remains after the burn-in.
        burn_in: the length of the burn-in, in images.
        average: half-life of the generator's average, in images.
    """
    stages = dict(widths=widths, cardinalities=cardinalities, blocks=(2,) * len(widths))
    types = dict(dtype="bfloat16", float32_stages=float32_stages)
    mirrored = {name: sizes[::-1] for name, sizes in stages.items()}
    config.model.generator.update(stages, **types, embedding_features=64)
    config.model.discriminator.update(mirrored, **types, embedding_features=widths[0])
    steps = burn_in // config.batch_size
    penalty = dict(weight=gamma / 2, every=1, end_weight=gamma / 20, burn_in=steps)
    config.regularizers = dict(r1=penalty, r2=dict(penalty))
    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=2e-4, end_learning_rate=5e-5, decay=float(steps))
    config.averages.ema.steps = average / config.batch_size


def stylegan2(
    config: ConfigDict, *, gamma: float, learning_rate: float, average: int, **sizes: int
) -> None:
    """Set StyleGAN2 with lazy penalties.

    Args:
        gamma: the weight of R1.
        average: half-life of the generator's average, in images.
        sizes: fields of both networks.
    """
    sizes = dict(sizes, resolution=config.data.image_shape[0], dtype="bfloat16")
    config.model.generator.update(sizes)
    config.model.discriminator.update(sizes)
    config.objective = "non_saturating"
    config.regularizers = dict(
        r1=dict(weight=gamma / 2, every=16), path_length=dict(weight=2.0, every=4)
    )
    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=learning_rate, schedule="constant")
    config.averages.ema.steps = average / config.batch_size


def get_config(choice: str = "r3gan") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = large_gan(choice, f"cifar10_gan_{choice}", name="cifar10", image_shape=(32, 32, 3))
    if choice == "r3gan":
        config.batch_size, config.num_steps = 512, 400_000
        sizes = dict(widths=(768,) * 4, cardinalities=(96,) * 4)
        r3gan(config, **sizes, gamma=0.05, burn_in=20_000_000, average=5_000_000)
    else:
        config.batch_size, config.num_steps = 64, 1_600_000
        stylegan2(config, gamma=0.01, learning_rate=2.5e-3, average=500_000)
        config.augmentations, config.adaptive_augmentation = (), dict(name="ADA")
        config.data.flip = False
        config.model.generator.update(mapping_layers=2, style_mixing=0.0)
        config.model.discriminator.update(architecture="original", group_size=32)
        del config.regularizers.path_length
    return config
