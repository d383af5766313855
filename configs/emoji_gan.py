"""A class-conditional GAN on emoji of 32×32 pixels, for as long as emoji_latent_flow.

python -m experiments.train --config=configs/emoji_gan.py --workdir=runs/emoji_gan

The networks are DCGAN's, the loss is R3GAN's. The discriminator sees real and generated images
after the same random changes of color, place and missing squares (DiffAugment, Zhao et al. 2020),
because 1,527 emoji are few.

Not yet run to the end, so there is no score.
"""

from ml_collections import ConfigDict

from experiments.configuration import base


def get_config() -> ConfigDict:
    config = base.gan("emoji_gan", "dcgan", name="emoji", image_shape=(32, 32, 3), flip=True)
    config.num_steps, config.batch_size = 3000, 32
    config.snapshot_every = config.evaluation.every = 1500
    config.sampling.every = 500
    sizes = dict(width=32, doublings=3)
    config.model.generator.update(sizes, latent_size=64)
    config.model.discriminator.update(sizes)
    config.augmentations = ("color", "translation", "cutout")
    for penalty in config.regularizers.values():
        penalty.weight = 0.3
    config.evaluation.labels = "training"  # categories have 4 to 311 emoji
    config.evaluation.measures.vgg16 = dict(name="VGG16Distance")
    return config
