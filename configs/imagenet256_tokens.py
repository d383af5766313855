"""Class-conditional transformers over codes of ImageNet at 256×256, for many accelerators.

python -m experiments.train --config=configs/imagenet256_tokens.py:llamagen_b \
    --config.space.published=VQ --config.data.directory=IMAGES \
    --workdir=runs/imagenet256_llamagen_b

VQ is a folder with a tokenizer that genjax.pretrained.load reads. LlamaGen's has 16×16 codes of
16,384. docs/guides/published_weights.md says how an authors' file becomes such a folder.
--config.space.run=RUN takes one of configs/imagenet256_autoencoder.py:vq instead. IMAGES holds
pictures of any sizes, in one folder per class (genjax/data/sets/folder.py). The choices:
- llamagen_b, llamagen_l, llamagen_xl, llamagen_3b: LlamaGen (Sun et al. 2024), with the numbers of
  autoregressive/train/train_c2i.py and the guidance scales of GETTING_STARTED.md. Published FID is
  5.46 (B) and 3.80 (L), and at 384×384 2.62 (XL) and 2.18 (3B).
- var_d16, var_d20, var_d24, var_d30: VAR (Tian et al. 2024), with the numbers of its README.md and
  utils/arg_util.py. VQ is its tokenizer, a VARTokenizer. Published FID: 3.55, 2.95, 2.33 and 1.97.
- mar_b, mar_l, mar_h: MAR (Li et al. 2024), with the numbers of its README.md and main_mar.py, on
  latents without codes: --config.space.published=KL names an autoencoder with latents of 16×16×16,
  their MARAutoencoder, and experiments.encode writes the latents first. Published FID: 2.31, 1.78
  and 1.55.
- maskgit: MaskGIT (Chang et al. 2022), with the numbers of maskgit_class_cond_config.py. Published
  FID: 6.06, with a tokenizer of 1,024 codes.
- mdlm: masked diffusion with the numbers that MDLM has for text (Sahoo et al. 2024, config.yaml and
  model/small.yaml), since MDLM has none for images.

Differences from the papers:
- Images are encoded within the training step, after one crop and a random flip. With
  --config.space.directory=CODES experiments.encode writes the codes once. LlamaGen's authors read
  codes of ten crops.
- No choice has dropout. The authors of LlamaGen, MaskGIT, MAR and MDLM drop 0.1 of the activations,
  and those of VAR drop some layers.
- Weight decay is of kernels alone. The authors of LlamaGen, VAR and MAR also decay embeddings, and
  MAR's authors do not decay the denoiser.
- The weight decay of var_d30 stays at 0.05. The authors' decay rises to 0.08. var also averages its
  weights, but samples with the last ones, as the authors do. The authors crop at random from 288
  pixels.
- mar's latents are the encoder's means, and each channel is standardized. The authors sample
  latents and multiply them by 0.2325.
- mar draws a share of masked tokens for each image. The authors draw one share for a batch.
- maskgit has layer norms before its layers. Its masks follow the cosine alone. Conditions are
  dropped in training, so that sampling can be guided.
- mdlm's network is modulated by time and class, through 768 features. The paper's network does not
  take the time, and is modulated through 128 features. The authors' times begin at 0.001, and their
  last step takes the most likely tokens.

No choice has been run, so there is no score. The steps were compiled and run at toy size only.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configuration import base
from experiments.configuration.choices import check_choice
from genjax.diffusion import cosine_betas

EPOCH = 1_281_167  # images
DATA = dict(name="folder", image_shape=(256, 256, 3), resize=True, flip=True)


def _llamagen(name: str, size: str, guidance_scale: float) -> ConfigDict:
    config = base.tokens(name, "TokenAutoregression", 1000, **DATA)
    config.model.name = f"LlamaGen_{size}"
    config.batch_size, config.num_steps = 256, 300 * (EPOCH // 256)
    _optimize(config, learning_rate=1e-4, b2=0.95, weight_decay=0.05, clip_norm=1.0)
    config.sampling.guidance_scale = guidance_scale
    return config


def _var(
    name: str, depth: int, epochs: int, rate: float, end: float, batch_size: int = 768
) -> ConfigDict:
    """Return the config of VAR of a depth. The `rate` is for 256 images and falls to end·rate."""
    config = base.tokens(name, "NextScale", 1000, **DATA | dict(flip=False))
    config.model.name = f"VAR_d{depth}"
    config.batch_size, config.num_steps = batch_size, epochs * (EPOCH // batch_size)
    rate *= batch_size / 256
    # The rate stays for 5 % of the steps after the warm-up.
    fall = dict(schedule="linear", warmup=0.02, hold=0.049, end_learning_rate=end * rate)
    _optimize(config, learning_rate=rate, b2=0.95, weight_decay=0.05, clip_norm=2.0, **fall)
    config.sampling.update(guidance_scale=2.5, top_k=900, top_p=0.96, weights="params")
    return config


def _mar(name: str, size: str, guidance_scale: float) -> ConfigDict:
    config = base.masked_autoregression(name, 1000, **DATA)
    config.model.name = f"MAR_{size}"
    epoch = EPOCH // 2048
    config.batch_size, config.num_steps = 2048, 800 * epoch
    config.process = dict(name="VariancePreservingTable", betas=cosine_betas())
    config.target.name, config.loss.name, config.times.name = "noise", "hybrid_loss", "uniform"
    decay = dict(weight_decay=0.02, clip_norm=3.0)
    _optimize(config, learning_rate=8e-4, b2=0.95, warmup=100.0 * epoch, **decay)
    config.sampling.update(num_steps=256, token_steps=100, guidance_scale=guidance_scale)
    config.sampling.update(sampler=dict(name="ddpm"), grid=dict(name="linspace_grid"))
    return config


def _maskgit(name: str) -> ConfigDict:
    config = base.tokens(name, "MaskedTokens", 1000, **DATA)
    config.model.update(name="MaskGIT", width=768, depth=24, num_heads=16)
    config.batch_size, config.num_steps = 256, 2_000_000
    _optimize(config, learning_rate=1e-4, b2=0.96, weight_decay=0.045, warmup=5000.0)
    config.sampling.update(num_steps=8, guidance_scale=1.0)
    return config


def _mdlm(name: str) -> ConfigDict:
    config = base.discrete_diffusion(name, 1000, **DATA)
    config.model.update(width=768, depth=12, num_heads=12)
    config.batch_size, config.num_steps = 512, 1_000_000
    _optimize(config, learning_rate=3e-4, warmup=2500.0, clip_norm=1.0)
    config.sampling.update(num_steps=128, guidance_scale=1.0)
    return config


def _optimize(config: ConfigDict, **fields: float) -> None:
    """Set AdamW. By default its rate is constant, without warm-up, weight decay or clipping."""
    none = dict(schedule="constant", warmup=0.0, weight_decay=0.0, clip_norm=placeholder(float))
    config.optimizer.update(none | fields)


MODELS = {
    "llamagen_b": lambda name: _llamagen(name, "B", 2.0),
    "llamagen_l": lambda name: _llamagen(name, "L", 2.0),
    "llamagen_xl": lambda name: _llamagen(name, "XL", 1.75),
    "llamagen_3b": lambda name: _llamagen(name, "3B", 1.65),
    "var_d16": lambda name: _var(name, 16, 200, 1e-4, 0.1),
    "var_d20": lambda name: _var(name, 20, 250, 1e-4, 0.1),
    "var_d24": lambda name: _var(name, 24, 350, 8e-5, 0.01),
    "var_d30": lambda name: _var(name, 30, 350, 8e-5, 0.01, batch_size=1024),
    "mar_b": lambda name: _mar(name, "B", 2.9),
    "mar_l": lambda name: _mar(name, "L", 3.0),
    "mar_h": lambda name: _mar(name, "H", 3.2),
    "maskgit": _maskgit,
    "mdlm": _mdlm,
}
CHOICES = tuple(MODELS)


def get_config(choice: str = "llamagen_b") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = MODELS[choice](f"imagenet256_tokens_{choice}")
    config.model.update(dtype="bfloat16", remat_policy="products_saveable")
    config.space = base.tokenizer(published=placeholder(str))
    if choice.startswith("mar"):
        folder = dict(directory="runs/imagenet256_latents", shape=(16, 16, 16))
        config.space.update(name="Latents", batch_size=64, **folder)
    # Decays of 0.999 and 0.9999 per step.
    config.averages.ema.steps = 692.8 if choice == "maskgit" else 6931.1
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.update(every=50_000, per_class=1, batch_size=64)
    config.checkpoint.every = 10_000
    config.evaluation.num_samples = 50_000
    config.evaluation.measures.vgg16 = dict(name="VGG16Distance")
    return config
