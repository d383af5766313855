"""GANs on FFHQ, 70,000 faces, with their authors' settings, for accelerators.

python -m experiments.train --config=configs/ffhq_gan.py:stylegan2_1024 \
    --config.data.directory=FOLDER --workdir=runs/ffhq

FOLDER holds PNG files whose side is that of the choice. The choices:
- stylegan2_1024: configuration F (Karras et al. 2020, "StyleGAN2").
- stylegan2_256: the "paper256" settings of StyleGAN2-ADA (Karras et al. 2020), with mirrored
  images and without augmentation.
- stylegan3_t, stylegan3_r: configurations T and R at 1024 pixels (Karras et al. 2021, "StyleGAN3").
- r3gan_256, r3gan_64: Huang et al. 2024, appendix D.

Differences from the papers: R3GAN's augmentation, average and β₂, and StyleGAN's penalties, types
and averages are those of configs/cifar10_gan.py. Path lengths are of the whole batch, not of half.

The discriminator of stylegan3_r sees its first 200,000 images blurred, less and less (section 3.2).
The authors' program blurs only in configuration R.

Not yet run to the end, so there is no score.
"""

from ml_collections import ConfigDict

from configs.cifar10_gan import large_gan, r3gan, stylegan2
from experiments.configuration.choices import check_choice

CHOICES = (
    "stylegan2_1024",
    "stylegan2_256",
    "stylegan3_t",
    "stylegan3_r",
    "r3gan_256",
    "r3gan_64",
)


def get_config(choice: str = "r3gan_256") -> ConfigDict:
    check_choice(choice, CHOICES)
    if choice.startswith("stylegan3"):
        return stylegan3(choice)
    model, side = choice.split("_")
    shape = (int(side), int(side), 3)
    config = large_gan(model, f"ffhq_gan_{choice}", name="folder", image_shape=shape)
    config.condition = dict(name="Unconditional")
    config.sampling.per_class = 16 if choice == "stylegan2_1024" else 64
    if choice == "stylegan2_1024":
        config.batch_size, config.num_steps, config.augmentations = 32, 780_000, ()
        stylegan2(config, gamma=10, learning_rate=2e-3, average=10_000)
        config.evaluation.num_samples = 1000  # 12 GB as float32
    elif choice == "stylegan2_256":
        config.batch_size, config.num_steps, config.augmentations = 64, 390_000, ()
        stylegan2(config, gamma=1, learning_rate=2.5e-3, average=20_000, channel_base=16384)
        config.model.discriminator.group_size = 8
    else:
        fine, float32_stages, gamma = {
            "64": (((384,), (48,)), 1, 2),
            "256": (((384, 192, 96), (48, 24, 12)), 3, 150),
        }[side]
        config.batch_size, config.num_steps = 256, 600_000
        sizes = dict(widths=(768,) * 4 + fine[0], cardinalities=(96,) * 4 + fine[1])
        r3gan(
            config,
            **sizes,
            float32_stages=float32_stages,
            gamma=gamma,
            burn_in=20_000_000,
            average=500_000,
        )
    return config


def stylegan3(choice: str) -> ConfigDict:
    """Return the settings of the paper for FFHQ at 1024 pixels."""
    config = large_gan(
        "stylegan2", f"ffhq_gan_{choice}", name="folder", image_shape=(1024, 1024, 3)
    )
    config.condition = dict(name="Unconditional")
    config.sampling.per_class = 16
    config.batch_size, config.num_steps, config.augmentations = 32, 780_000, ()
    stylegan2(config, gamma=32.8, learning_rate=2e-3, average=10_000)
    del config.regularizers.path_length
    half_life = 20_000 / config.batch_size  # updates
    config.model.generator = dict(
        name=choice,
        resolution=1024,
        magnitude_decay=0.5 ** (1 / half_life),
        dtype="float16",  # bfloat16 is less exact than the filters
    )
    config.optimizer.generator.learning_rate = 2.5e-3
    if choice == "stylegan3_r":
        config.blur = dict(sigma=10.0, images=200_000)
    config.evaluation.num_samples = 1000  # 12 GB as float32
    config.evaluation.measures.equivariance = dict(
        name="Equivariance", num_samples=256, draws=128, columns=2
    )
    return config
