"""Class-conditional GANs on emoji of 32×32 pixels, with three answers to the few images.

python -m experiments.train --config=configs/emoji_gan.py:ada --workdir=runs/emoji_gan_ada

The networks are DCGAN's, the loss is R3GAN's. 1,527 emoji are few, so the discriminator may
memorize them. The choice is what it sees:
- none: the images as they are.
- diffaugment: all images after random changes of color, place and missing squares (Zhao et al.
  2020).
- ada: images after random changes whose probability follows r_t, a measure of overfitting (Karras
  et al. 2020).

Not yet run to the end. 900 steps took 6.5 minutes on one CPU core, and 14.6 with ada. That is too
short to memorize: r_t grows to 0.20, and ada starts to augment at 0.6. So ada's probability stayed
at 0, and its row differs from none's by chance. All three are far from good:

choice       FD-VGG16  class accuracy  discriminator's accuracy on training and held-out images
none         381       0.395           0.65, 0.64
diffaugment  425       0.526           0.61, 0.54
ada          333       0.291           0.60, 0.56
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
        # The run sees 96,000 images; the authors' 500,000 would hardly move the probability.
        config.adaptive_augmentation = dict(name="ADA", images_to_one=50_000.0)
    for penalty in config.regularizers.values():
        penalty.weight = 0.3
    config.evaluation.labels = "training"  # categories have 4 to 311 emoji
    config.evaluation.measures.vgg16 = dict(name="VGG16Distance")
    return config
