"""Class-conditional R3GAN on ImageNet at 32 or 64 pixels with its authors' settings.

python -m experiments.train --config=configs/imagenet_gan.py:64 --workdir=runs/imagenet64_gan

The choice is 32 or 64 (Huang et al. 2024, appendix D), for many accelerators. Differences from the
paper: augmentation, average and β₂ are those of cifar10_gan.

Not yet run to the end, so there is no score.
"""

from ml_collections import ConfigDict

from configs.cifar10_gan import large_gan, r3gan
from experiments.configuration.choices import check_choice

CHOICES = ("32", "64")


def get_config(choice: str = "64") -> ConfigDict:
    check_choice(choice, CHOICES)
    side, stages = int(choice), {"32": 4, "64": 5}[choice]
    data = dict(name=f"imagenet_resized/{side}x{side}", held_out_split="validation")
    config = large_gan("r3gan", f"imagenet_gan_{choice}", 1000, image_shape=(side, side, 3), **data)
    config.mesh.update(data=1, fsdp=-1)
    config.batch_size, config.num_steps = 4096, 200_000
    sizes = dict(widths=(1536,) * stages, cardinalities=(96,) * stages)
    r3gan(
        config,
        **sizes,
        gamma={"32": 0.5, "64": 1.0}[choice],
        burn_in=200_000_000,
        average=50_000_000,
    )
    config.sampling.per_class = 1
    config.evaluation.num_samples = 50_000
    return config
