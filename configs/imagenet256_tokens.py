"""Class-conditional transformers over codes of ImageNet at 256×256, for many accelerators.

python -m experiments.train --config=configs/imagenet256_tokens.py:llamagen_b \
    --config.space.published=VQ --config.data.directory=IMAGES \
    --workdir=runs/imagenet256_llamagen_b

VQ is a folder with a tokenizer that genjax.pretrained.load reads, such as LlamaGen's of 16×16 codes
of 16,384. --config.space.run=RUN takes one of configs/imagenet256_autoencoder.py:vq instead. IMAGES
holds pictures of any sizes, in one folder per class (genjax/data/sets/folder.py). The choices:
- llamagen_b, llamagen_l, llamagen_xl, llamagen_3b: LlamaGen (Sun et al. 2024), with the numbers of
  autoregressive/train/train_c2i.py and the guidance scales of GETTING_STARTED.md. Published FID is
  5.46 (B) and 3.80 (L), and at 384×384 2.62 (XL) and 2.18 (3B).
- maskgit: MaskGIT (Chang et al. 2022), with the numbers of maskgit_class_cond_config.py. Published
  FID: 6.06, with a tokenizer of 1,024 codes.
- mdlm: masked diffusion with the numbers that MDLM has for text (Sahoo et al. 2024, config.yaml and
  model/small.yaml), since there are none for images.

Differences from the papers:
- Images are encoded within the training step, after one crop and a random flip. LlamaGen reads
  codes of ten crops.
- There is no dropout; LlamaGen and MaskGIT drop 0.1 of the activations.
- maskgit has layer norms before its layers. Its masks follow the cosine alone. Conditions are
  dropped in training, so that sampling can be guided.
- mdlm's network is modulated by time and class; the paper's is not told the time.

No choice has been run, so there is no score. The steps were compiled and run at toy size only.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configuration import base
from experiments.configuration.choices import check_choice

EPOCH = 1_281_167  # images
DATA = dict(name="folder", image_shape=(256, 256, 3), resize=True, flip=True)


def _llamagen(name: str, size: str, guidance_scale: float) -> ConfigDict:
    config = base.tokens(name, "TokenAutoregression", 1000, **DATA)
    config.model.name = f"LlamaGen_{size}"
    config.batch_size, config.num_steps = 256, 300 * (EPOCH // 256)
    _optimize(config, learning_rate=1e-4, b2=0.95, weight_decay=0.05, clip_norm=1.0)
    config.sampling.guidance_scale = guidance_scale
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
    """Set AdamW at a constant rate, without what `fields` do not name."""
    none = dict(schedule="constant", warmup=0.0, weight_decay=0.0, clip_norm=placeholder(float))
    config.optimizer.update(none | fields)


MODELS = {
    "llamagen_b": lambda name: _llamagen(name, "B", 2.0),
    "llamagen_l": lambda name: _llamagen(name, "L", 2.0),
    "llamagen_xl": lambda name: _llamagen(name, "XL", 1.75),
    "llamagen_3b": lambda name: _llamagen(name, "3B", 1.65),
    "maskgit": _maskgit,
    "mdlm": _mdlm,
}
CHOICES = tuple(MODELS)


def get_config(choice: str = "llamagen_b") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = MODELS[choice](f"imagenet256_tokens_{choice}")
    config.model.update(dtype="bfloat16", remat_policy="products_saveable")
    config.space = base.tokenizer(published=placeholder(str))
    config.averages.ema.steps = 6931.1  # a decay of 0.9999 per step
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.update(every=50_000, per_class=1, batch_size=64)
    config.checkpoint.every = 10_000
    config.evaluation.num_samples = 50_000
    config.evaluation.measures.vgg16 = dict(name="VGG16Distance")
    return config
