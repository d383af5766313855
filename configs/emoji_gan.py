"""Class-conditional GANs on emoji of 32×32 pixels: two augmentations for few images, or none.

python -m experiments.train --config=configs/emoji_gan.py:ada --workdir=runs/emoji_gan_ada

The networks are DCGAN's, and the loss is R3GAN's. The discriminator may memorize the training
emoji, which are only 1,527. The choice says what the discriminator sees:
- none: the images as they are.
- diffaugment: all images after random changes of color and position, and with missing squares (Zhao
  et al. 2020).
- ada: images after random changes whose probability follows r_t, a measure of overfitting (Karras
  et al. 2020).

The penalties have the weight 0.03 with ada, and 0.3 otherwise. These flags make them weak:
--config.regularizers.r1.weight=0.03 --config.regularizers.r2.weight=0.03

On one busy CPU core, 3,000 steps of none took 24 to 33 minutes, and those of ada 45 minutes. r_v
grows from 0 as the discriminator memorizes. At 0, held-out images have the logits of training
images:

choice  penalties  steps  FD-VGG16  r_v
none    0.3        1,500  195       0.10
                   3,000  190       0.21
none    0.03       1,500  173       0.10
                   3,000  192       0.16
ada     0.03       1,500  180       0.13
                   3,000  163       0.06

r_v of none compares all classes at once, and r_v of ada compares pairs of one class, so their
values cannot be compared. In pairs, none with the penalty 0.3 has 0.14 and 0.19.

With weak penalties, the samples of none become worse after step 1,500. ada keeps r_t at its target,
and its r_v falls. diffaugment has only been run for 900 steps (FD-VGG16 425).
docs/results/gans.md says more.
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("none", "diffaugment", "ada")


def get_config(choice: str = "diffaugment") -> ConfigDict:
    check_choice(choice, CHOICES)
    data = dict(name="emoji", image_shape=(32, 32, 3), flip=True)
    config = base.gan(f"emoji_gan_{choice}", "dcgan", **data)
    config.num_steps, config.batch_size = 3000, 32
    config.snapshot_every = config.evaluation.every = 1500
    config.sampling.every = 500
    sizes = dict(width=32, doublings=3)
    config.model.generator.update(sizes, latent_size=64)
    config.model.discriminator.update(sizes)
    if choice == "diffaugment":
        config.augmentations = ("color", "translation", "cutout")
    if choice == "ada":
        # The run sees 96,000 images, and the authors' 500,000 would hardly move the probability.
        config.adaptive_augmentation = dict(name="ADA", images_to_one=20_000.0)
    for penalty in config.regularizers.values():
        penalty.weight = 0.03 if choice == "ada" else 0.3
    config.evaluation.labels = "training"  # categories have 4 to 311 emoji
    config.evaluation.measures.vgg16 = dict(name="VGG16Distance")
    return config
