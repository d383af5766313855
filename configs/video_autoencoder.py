"""Spatiotemporal autoencoders of clips of 17 frames at 32×32, a small version of Wan 2.1's.

python -m experiments.train --config=configs/video_autoencoder.py:moving_digits \
    --workdir=runs/moving_digits_autoencoder

Evaluation needs the weights of LPIPS: pip install '.[lpips]'.

Patches of 2×2 pixels are channels, as in Wan 2.2. The choices:
- moving_digits: clips of one or two digits that move and bounce. Sides are down-sampled 8 times,
  and time 4 times.
- animated_emoji: sides are down-sampled 4 times, and time twice. The file
  genjax/data/sets/animated_emoji.py names the packages of the clips. Unpack them in
  --config.data.directory.
- wan_256: the whole architecture on the same clips at 256×256, with LPIPS and PatchGAN, for many
  accelerators. Wan's authors train on images first, and their discriminator reads whole clips. Not
  yet run.

The default is 1,200 steps. These runs had --config.num_steps=3000 and one CPU core, which other
programs shared in the run of animated_emoji. Results on 50 held-out clips:

choice          steps  seconds  compression  PSNR     SSIM  LPIPS  FD-VGG16 of frames (training)
moving_digits   3,000  2,346    6.8×         20.1 dB  .812  .233   96.7 (3.4)
animated_emoji  3,000  2,089    5.7×         24.9 dB  .817  .151   107 (99.5)

With the down-sampling of moving_digits, 48 channels and b2 = 0.9, animated emoji had 21.8 dB after
4,000 steps. The losses were still falling at the end.
"""

from ml_collections import ConfigDict

from configs.imagenet256_autoencoder import adversarial_autoencoder
from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("moving_digits", "animated_emoji", "wan_256")


def get_config(choice: str = "moving_digits") -> ConfigDict:
    check_choice(choice, CHOICES)
    name = f"video_autoencoder_{choice}"
    if choice == "wan_256":
        config = adversarial_autoencoder(name)
        config.data.update(
            name="animated_emoji/256", feature="video", image_shape=(17, 256, 256, 3)
        )
        config.batch_size = 16
        config.model = dict(name="AutoencoderWan", dtype="bfloat16")
        config.weights = dict(perceptual=1.0, divergence=1e-6)
        config.sampling.batch_size = 4
        config.condition.num_rows = 1
        return config
    channels = 1 if choice == "moving_digits" else 3
    data = dict(name="animated_emoji/32" if choice == "animated_emoji" else choice, feature="video")
    config = base.autoencoder(name, **data, image_shape=(17, 32, 32, channels))
    config.num_steps = config.snapshot_every = 1200
    config.batch_size = 4
    config.log_every = 50
    config.model = dict(name="AutoencoderWan", image_channels=channels, patch_size=2, blocks=1)
    config.optimizer.autoencoder.b2 = 0.99
    if choice == "moving_digits":
        deep = dict(widths=(32, 48, 64), temporal_downsample=(True, True))
        config.model.update(latent_channels=32, **deep)
        # Most pixels are black, so a black clip has a small absolute error. With the absolute
        # error, clips were still black after 180 steps. With the squared error, they were black
        # until step 90.
        config.reconstruction.name = "l2"
        config.optimizer.autoencoder.b1 = 0.9
    else:
        config.model.update(latent_channels=16, widths=(32, 64), temporal_downsample=(True,))
    config.weights = dict(perceptual=0.0, divergence=1e-3)
    config.adversary.weight = 0.0
    config.averages.ema.steps = 50.0
    config.condition.num_rows = 1
    config.sampling.update(every=600, per_class=6)
    config.evaluation.num_samples = 50
    return config
