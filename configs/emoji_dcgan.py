"""DCGAN as published, five layers of 4×4 kernels at most 1,024 wide, on emoji of 64×64 pixels.

python -m experiments.train --config=configs/emoji_dcgan.py --workdir=runs/emoji_dcgan

The networks, loss, optimizer and batch are those of Radford, Metz & Chintala 2016 (figure 1 and
section 4). The generator's maps have 4×4×1024, 8×8×512, 16×16×256, 32×32×128 and 64×64×3 values.
Differences from the paper: classes, normal latents, and an average of the weights.

The emoji of genjax have 32×32 pixels and are enlarged. For other images set

    a folder of emoji of 64×64 pixels    --config.data.directory=FOLDER
    a folder of any images               --config.data.directory=FOLDER --config.data.name=folder
                                         --config.condition.name=Unconditional

Not yet run to the end, so there is no score. The paper's data sets have 350,000 images and more.
With only 1,527 emoji, expect that the discriminator memorizes them. configs/emoji_gan.py shows
augmentations against this.
"""

from ml_collections import ConfigDict

from experiments.configuration import base


def get_config() -> ConfigDict:
    config = base.gan("emoji_dcgan", "dcgan", name="emoji", image_shape=(64, 64, 3), resize=True)
    config.num_steps, config.batch_size = 10_000, 128
    config.model.generator.update(width=128, doublings=4, latent_size=100)
    config.model.discriminator.update(width=128, doublings=4)
    config.objective, config.regularizers = "non_saturating", dict()
    for player in config.optimizer.values():
        player.update(learning_rate=2e-4, schedule="constant", b1=0.5, b2=0.999)
    config.snapshot_every = config.evaluation.every = 5000
    config.evaluation.labels = "training"  # categories have 4 to 311 emoji
    return config
