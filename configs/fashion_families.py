"""Every family on class-conditional Fashion-MNIST, with one evaluation for all of them.

python -m experiments.benchmark --config=configs/fashion_families.py:flow --program=train \
    --budget=600
python -m experiments.train --config=configs/fashion_families.py:flow --config.num_steps=STEPS \
    --workdir=runs/fashion_families_flow

The first command measures how many steps the budget allows, and prints the second.

The choices:

    gan                      fashion_gan:dcgan
    autoregression           fashion_autoregression:pixelcnn
    flow, unet               fashion_flow, fashion_unet
    vae                      a variational autoencoder of dense layers, without a class condition
    masked_diffusion         masked diffusion over the pixels' 256 levels (MDLM)
    latent_flow              rectified flow on 7×7 latents
    token_autoregression     LlamaGen on 7×7 codes
    masked_tokens            MaskGIT on 7×7 codes
    next_scale               VAR on maps of codes
    mean_flow, drifting      one step, learned from data
    consistency              one step, learned from the run of flow

Some choices need a run of another choice, which must be trained first:

    autoencoder              for latent_flow
    tokenizer                for token_autoregression and masked_tokens
    scales_tokenizer         for next_scale
    flow                     for consistency

The run of the choice autoencoder is runs/fashion_families_autoencoder, and so on.

Training draws no samples and measures nothing, so the whole budget goes into steps. Each model is
measured at the end, on 2,000 samples with balanced labels. docs/results/families.md has the scores
of twelve families after ten minutes on one CPU core, and after six times the steps.
masked_diffusion has not been measured: its 2,000 samples take 2.5 hours.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import (
    digits_vae,
    fashion_autoregression,
    fashion_flow,
    fashion_gan,
    fashion_unet,
)
from experiments.configuration import base
from experiments.configuration.choices import check_choice

DATA = dict(name="fashion_mnist", image_shape=(28, 28, 1))
BLOCKS = dict(width=128, depth=4, num_heads=4, unroll=4)


def _vae() -> ConfigDict:
    config = digits_vae.get_config("elbo")
    config.data.update(DATA)
    config.model.update(latent_size=32, width=512)
    config.likelihood.levels = 256
    config.evaluation.measures.bounds.num_importance_samples = 100
    return config


def _masked_diffusion() -> ConfigDict:
    config = base.discrete_diffusion("", levels=256, **DATA)
    config.space.name = "Levels"
    config.model.update(width=64, depth=3, num_heads=2, unroll=3)
    config.batch_size, config.num_steps, config.averages.ema.steps = 16, 1000, 150.0
    config.optimizer.update(learning_rate=2e-3, warmup=100.0)
    config.sampling.guidance_scale = 1.0
    config.evaluation.measures.likelihood = dict(name="BoundBits", num_images=2000)
    return config


def _autoencoder(quantizer: dict | None) -> ConfigDict:
    """Return an autoencoder with L1 and PatchGAN, down-sampled 4 times."""
    config = base.autoencoder("", **DATA)
    network = dict(widths=(32, 64, 64), blocks=1, groups=8, mid_attention=True, image_channels=1)
    config.weights.perceptual = 0.0
    config.adversary.network = dict(width=32, layers=2, groups=8)
    # With an adaptive weight of 0.5 the discriminator soon told nothing apart, and its weight rose
    # to 1,500. This fixed weight is better by PSNR, SSIM, LPIPS and FD-VGG16.
    config.adversary.update(adaptive=False, weight=0.03)
    if quantizer is None:
        config.weights.divergence = 1e-3
        config.model = dict(name="AutoencoderKL", latent_channels=4, **network)
        return config
    config.weights.commitment = 0.25
    if quantizer["name"] == "MultiScaleQuantizer":
        config.weights.codebook = 1.0
    codes = dict(num_codes=512, features=8) | quantizer
    config.model = dict(name="VQModel", encoder_channels=64, quantizer=codes, **network)
    return config


def _latent_flow() -> ConfigDict:
    config = fashion_flow.get_config()
    config.model.patch_size = 1
    config.space = base.latents("runs/fashion_families_autoencoder")
    return config


def _tokens(task: str, network: str, tokenizer: str = "tokenizer") -> ConfigDict:
    config = base.tokens("", task, **DATA)
    config.model = dict(name=network, **BLOCKS)
    config.space = base.tokenizer(run=f"runs/fashion_families_{tokenizer}")
    config.num_steps, config.averages.ema.steps = 2000, 150.0
    config.optimizer.update(learning_rate=2e-3, warmup=100.0, weight_decay=0.03)
    return config


def _one_step(teacher: str | None = None, **method: Any) -> ConfigDict:
    """Return a student with the data, network and budget of fashion_flow."""
    config = fashion_flow.get_config()
    base.distillation(config, teacher, **method)
    config.times = dict(name="uniform")
    config.conditioning_dropout = 0.1
    return config


def _mean_flow() -> ConfigDict:
    config = _one_step(name="MeanFlow", diagonal=0.5, guidance_scale=1.5)
    config.model.time_scale, config.optimizer.b2 = 1.0, 0.95
    return config


def _drifting() -> ConfigDict:
    config = _one_step(name="Drift", generated=16)
    config.task, config.conditioning_dropout = "Drifting", 0.0
    return config


def _consistency() -> ConfigDict:
    config = _one_step("runs/fashion_families_flow", name="Consistency", guidance_scale=1.5)
    config.sampling.sampler.name = "consistency"
    return config


RESTARTED = dict(normalize=True, ema_decay=0.99, restart_threshold=0.05)
SCALES = dict(sides=(1, 2, 4, 7), ema_decay=0.97, restart_threshold=0.1)
FAMILIES = {
    "vae": _vae,
    "gan": lambda: fashion_gan.get_config("dcgan"),
    "autoregression": lambda: fashion_autoregression.get_config("pixelcnn"),
    "masked_diffusion": _masked_diffusion,
    "flow": fashion_flow.get_config,
    "unet": fashion_unet.get_config,
    "latent_flow": _latent_flow,
    "token_autoregression": lambda: _tokens("TokenAutoregression", "LlamaGen"),
    "masked_tokens": lambda: _tokens("MaskedTokens", "MaskGIT"),
    "next_scale": lambda: _tokens("NextScale", "VAR", "scales_tokenizer"),
    "mean_flow": _mean_flow,
    "drifting": _drifting,
    "consistency": _consistency,
}
AUTOENCODERS = {
    "autoencoder": lambda: _autoencoder(None),
    "tokenizer": lambda: _autoencoder(dict(name="VectorQuantizer", **RESTARTED)),
    "scales_tokenizer": lambda: _autoencoder(dict(name="MultiScaleQuantizer", **SCALES)),
}
CHOICES = (*FAMILIES, *AUTOENCODERS)


def get_config(choice: str = "flow") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = (FAMILIES | AUTOENCODERS)[choice]()
    config.experiment = f"fashion_families_{choice}"
    config.sampling.every = config.evaluation.every = 0
    if choice in FAMILIES:
        measures = dict(samples=dict(name="Samples"), vgg16=dict(name="VGG16Distance"))
        base.family_measures(config, 2000, **measures)
    return config
