"""From an emoji of 32×32 pixels back to its latents: encoders of GANs on emoji.

python -m experiments.train --config=configs/emoji_gan.py:none --workdir=runs/emoji_gan
python -m experiments.train --config=configs/emoji_gan_inverse.py:encoder \
    --workdir=runs/emoji_encoder

The choices are those of configs/digits_gan_inverse.py:
- encoder: learns the inverse of a finished generator, runs/emoji_gan or --config.generator_run. Its
  loss has a perceptual term.
- bigan, bigbigan: train generator and encoder together, without the first command. bigbigan has
  not been run to the end.

Results on 40 held-out emoji, of encoder after 29 minutes on one CPU core, and of bigan after 42
minutes on a busy one. Errors are mean squares, of pixels in [−1, 1], and of the latents z of
generated emoji:

way back                                 pixels  latents  milliseconds per image
gradient descent, 500 steps, on none     0.066   0.25     1,715
encoder                                  0.152   0.77     0.48
encoder, then 20 steps                   0.104   0.69     65
gradient descent, 500 steps, on bigan    0.060   0.017    2,154
joint training of bigan                  0.437   1.61     0.57
joint training of bigan, then 20 steps   0.143   1.36     86

No way back can reconstruct an emoji that the generator cannot make. The recall of none is 0.36, of
bigan 0.51, and of ada 0.06.
"""

from ml_collections import ConfigDict

from configs import emoji_gan
from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("bigan", "bigbigan", "encoder")
SMALL = dict(width=64, doublings=3)


def get_config(choice: str = "bigan") -> ConfigDict:
    check_choice(choice, CHOICES)
    name = f"emoji_gan_inverse_{choice}"
    if choice == "encoder":
        config = base.inversion(name, name="emoji", image_shape=(32, 32, 3), flip=True)
        config.generator_run = "runs/emoji_gan"
        config.num_steps, config.batch_size, config.weights.perceptual = 1500, 32, 1.0
        config.model.update(SMALL)
        config.evaluation.measures.inversions.count = 40  # each takes seconds of gradient descent
        return config
    config = emoji_gan.get_config("none")  # augmentations would hide how x and z belong together
    distance = config.evaluation.measures.vgg16
    base.bidirectional(config, bigbigan=choice == "bigbigan")
    config.evaluation.measures.vgg16 = distance
    config.experiment, config.evaluation.measures.inversions.count = name, 40
    config.model.encoder.update(SMALL)
    config.model.discriminator.update(width=32, doublings=3)
    return config
