"""Every family on captioned emoji of 32×32 pixels, with one evaluation for all of them.

python -m experiments.benchmark --config=configs/emoji_families.py:flow --program=train --budget=600
python -m experiments.train --config=configs/emoji_families.py:flow --config.num_steps=STEPS \
    --workdir=runs/emoji_families_flow

The first command measures how many steps the budget allows, and prints the second.

The choices, by what their network is conditioned on:

    its name, encoded by MiniLM
      flow, latent_flow          emoji_text on pixels, and on latents
      token_autoregression, masked_tokens, next_scale, masked_autoregression, masked_diffusion,
      uniform_diffusion          the choices of emoji_tokens with _text
      mean_flow                  one step, learned from data
      consistency                four steps, learned from runs/emoji_families_latent_flow
    the category of its name, one of ten
      gan                        emoji_gan:diffaugment
      autoregression             fashion_autoregression:rnn, which sees all rows above a pixel
      unet, drifting             the same choices of fashion_families
    nothing
      vae

Some choices need a run of another choice, which must be trained first:

    autoencoder                  for latent_flow, masked_autoregression, mean_flow, consistency
    tokenizer                    for the models of 8×8 codes
    scales_tokenizer             for next_scale

The run of the choice autoencoder is runs/emoji_families_autoencoder, and so on. Its latents are
encoded once: python -m experiments.encode --config=configs/emoji_families.py:latent_flow

Each network makes a picture for each of 384 training names and 384 held-out names, and PromptMatch
measures how well the pictures fit the names. Training draws no samples and measures nothing, so the
whole budget goes into steps. docs/results/families.md has the scores after ten minutes on one CPU
core, and after twenty for uniform_diffusion and drifting. The GAN and latent_flow have six
times the steps, too.
"""

from ml_collections import ConfigDict

from configs import (
    digits_vae,
    emoji_autoencoder,
    emoji_flow,
    emoji_gan,
    emoji_text,
    emoji_tokens,
    fashion_autoregression,
    fashion_flow,
    fashion_unet,
)
from experiments.configuration import base
from experiments.configuration.choices import check_choice

DATA = dict(name="emoji", image_shape=(32, 32, 3), flip=True)
LATENTS = base.latents(
    "runs/emoji_families_autoencoder", directory="runs/emoji_families_latents", shape=(8, 8, 4)
)
# Encodes names for the scorer if the network has no text encoder.
NAMES = base.captions((), name="experiments.inputs.conditions.Prompts")


def _on_emoji(config: ConfigDict) -> ConfigDict:
    """Return a config with the data of all families: emoji, mirrored, and their categories."""
    config.data.update(DATA)
    return config


def _vae() -> ConfigDict:
    config = _on_emoji(digits_vae.get_config("elbo"))
    config.model.update(latent_size=32, width=512)
    config.likelihood.levels = 256
    config.evaluation.measures.bounds.num_importance_samples = 100
    return config


def _unet() -> ConfigDict:
    config = _on_emoji(emoji_flow.get_config())
    config.model = fashion_unet.get_config().model
    return config


def _latent_flow() -> ConfigDict:
    config = emoji_text.get_config("cross_attention")
    config.space = LATENTS
    return config


def _tokens(choice: str, tokenizer: str = "tokenizer") -> ConfigDict:
    config = emoji_tokens.get_config(f"{choice}_text")
    config.space.run = f"runs/emoji_families_{tokenizer}"
    return config


def _masked_autoregression() -> ConfigDict:
    config = emoji_tokens.get_config("mar_text")
    config.space = LATENTS
    return config


def _mean_flow() -> ConfigDict:
    config = _latent_flow()
    base.distillation(config, name="MeanFlow", diagonal=0.5, guidance_scale=3.0)
    config.times = dict(name="uniform")
    config.model.time_scale, config.optimizer.b2 = 1.0, 0.95
    return config


def _drifting() -> ConfigDict:
    config = _on_emoji(fashion_flow.get_config())
    base.distillation(config, name="Drift", generated=16)
    config.times = dict(name="uniform")
    config.task, config.conditioning_dropout = "Drifting", 0.0
    return config


def _consistency() -> ConfigDict:
    config, teacher = _latent_flow(), "runs/emoji_families_latent_flow"
    base.distillation(config, teacher, name="Consistency", guidance_scale=3.0)
    config.times = dict(name="uniform")
    config.sampling.update(num_steps=4, sampler=dict(name="consistency"))
    return config


def _autoencoder() -> ConfigDict:
    """Return the config with a fixed weight: in long runs the adaptive one grows without bound."""
    config = emoji_autoencoder.get_config("kl_adversarial")
    config.adversary.update(adaptive=False, weight=0.03)
    return config


FAMILIES = {
    "vae": _vae,
    "gan": lambda: emoji_gan.get_config("diffaugment"),
    "autoregression": lambda: _on_emoji(fashion_autoregression.get_config("rnn")),
    "masked_diffusion": lambda: _tokens("masked_diffusion"),
    "uniform_diffusion": lambda: _tokens("uniform_diffusion"),
    "flow": lambda: emoji_text.get_config("cross_attention,pixels"),
    "unet": _unet,
    "latent_flow": _latent_flow,
    "token_autoregression": lambda: _tokens("vq_transformer"),
    "masked_tokens": lambda: _tokens("maskgit"),
    "next_scale": lambda: _tokens("var", "scales_tokenizer"),
    "masked_autoregression": _masked_autoregression,
    "mean_flow": _mean_flow,
    "drifting": _drifting,
    "consistency": _consistency,
}
AUTOENCODERS = {
    "autoencoder": _autoencoder,
    "tokenizer": lambda: emoji_autoencoder.get_config("vq_adversarial"),
    "scales_tokenizer": lambda: emoji_autoencoder.get_config("scales_adversarial"),
}
CHOICES = (*FAMILIES, *AUTOENCODERS)


def get_config(choice: str = "flow") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = (FAMILIES | AUTOENCODERS)[choice]()
    config.experiment = f"emoji_families_{choice}"
    config.sampling.every = config.evaluation.every = 0
    if choice in FAMILIES:
        captions = {} if config.condition.name == "Prompts" else dict(captions=NAMES)
        prompts = dict(name="PromptMatch", **captions)
        base.family_measures(config, 384, prompts=prompts)
    return config
