"""Autoencoders of images at 256×256 with LPIPS and PatchGAN, for many accelerators.

python -m experiments.train --config=configs/imagenet256_autoencoder.py:kl \
    --config.data.directory=IMAGES --workdir=runs/imagenet256_autoencoder

IMAGES holds pictures of 256×256 (genjax/data/sets/folder.py). The choices:
- kl: the architecture of FLUX's and SD3's autoencoder, down-sampled 8 times to 16 channels, with
  Stable Diffusion's recipe (Rombach et al. 2022, appendix G).
- vq: the architecture of LlamaGen's tokenizer of 16,384 codes, down-sampled 16 times, with the same
  recipe. LlamaGen's authors take squared differences in place of absolute ones. Their discriminator
  has a fixed weight, and starts at step 20,000.

Differences from Stable Diffusion's recipe: the learning rate is 1e-4 with warm-up and falls as a
cosine, where the authors' stays at 4.5e-6 times the batch. Gradients are clipped, weights are
averaged, and PatchGAN has group norm. The adaptive weight is bounded later (`adaptive_weight`).

Not yet run to the end, so there is no score.
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("kl", "vq")


def get_config(choice: str = "kl") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = adversarial_autoencoder(f"imagenet256_autoencoder_{choice}")
    config.data.update(name="folder", image_shape=(256, 256, 3), flip=True)
    config.batch_size = 96
    if choice == "kl":
        config.model = dict(
            name="AutoencoderKL",
            latent_channels=16,
            widths=(128, 256, 512, 512),
            use_quant_conv=False,
            use_post_quant_conv=False,
            dtype="bfloat16",
        )
        config.weights = dict(perceptual=1.0, divergence=1e-6)
    else:
        config.model = dict(
            name="VQModel",
            encoder_channels=256,
            widths=(128, 128, 256, 256, 512),
            attention_levels=(4,),
            quantizer=dict(name="VectorQuantizer", num_codes=16_384, features=8, normalize=True),
            dtype="bfloat16",
        )
        config.weights = dict(perceptual=1.0, commitment=0.25, codebook=1.0)
    return config


def adversarial_autoencoder(name: str) -> ConfigDict:
    """Return the recipe of full-size autoencoders: LPIPS, PatchGAN from step 50,000, and fsdp."""
    config = base.autoencoder(name, name="", image_shape=())
    config.num_steps = 400_000
    config.adversary.start_step = 50_000
    config.adversary.network = dict(width=64, layers=3, groups=8, dtype="bfloat16")
    for player in config.optimizer.values():
        player.update(learning_rate=1e-4, warmup=5000.0)
    config.averages.ema.steps = 7000.0
    config.mesh.update(data=1, fsdp=-1)
    config.snapshot_every = 400_000
    config.log_every = 50
    config.sampling.update(every=20_000, per_class=2, batch_size=32)
    config.checkpoint.every = 10_000
    config.evaluation.num_samples = 5000
    return config
