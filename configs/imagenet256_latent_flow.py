"""Class-conditional diffusion on latents of ImageNet at 256×256, for many accelerators.

python -m experiments.encode --config=configs/imagenet256_latent_flow.py \
    --config.space.published=VAE --config.data.directory=IMAGES
python -m experiments.train --config=configs/imagenet256_latent_flow.py \
    --config.space.published=VAE --config.data.directory=IMAGES \
    --workdir=runs/imagenet256_latent_flow

The choices have their papers' settings:
- sit: rectified flow with DiT-XL/2 (SiT, Ma et al. 2024).
- dit: DDPM with predicted noise and learned variance (DiT, Peebles & Xie 2023).
- lightning_dit: rectified flow with LightningDiT-XL/1 on 16×16×32 latents, for 64 epochs (Yao &
  Wang 2025).

VAE is a folder with Stable Diffusion's autoencoder as diffusers saves it (config.json and
diffusion_pytorch_model.safetensors). lightning_dit needs an autoencoder with its own latent shape.
IMAGES holds pictures of any sizes, in one folder per class (genjax/data/sets/folder.py).

Differences from the papers:
- Latents are the encoder's means, standardized by channel. DiT and SiT draw latents from the
  encoder's Gaussians, and scale all channels by one number.
- dit also trains at times between the steps of the paper's table.
- Products are in bfloat16. The released training code of DiT and SiT takes TF32.
- Guidance at scale 1.5 applies to all channels at all times. DiT and SiT guide three of four
  channels. LightningDiT guides three of 32 channels, at scale 10 after a tenth of the time.

The number of steps is that of the papers' comparisons. The best figures of SiT and DiT come from 7
million steps. Not yet run to the end, so there is no score.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("sit", "dit", "lightning_dit")


def get_config(choice: str = "sit") -> ConfigDict:
    check_choice(choice, CHOICES)
    images = dict(name="folder", image_shape=(256, 256, 3), resize=True, flip=True)
    config = base.diffusion(f"imagenet256_latent_flow_{choice}", 1000, **images)
    config.num_steps = 400_000
    config.batch_size = 256
    config.space = dict(
        name="Latents",
        run=placeholder(str),
        published=placeholder(str),
        directory="runs/imagenet256_latents",
        shape=(32, 32, 4),
        batch_size=64,
    )
    config.model = dict(
        name="DiT_XL", patch_size=2, dtype="bfloat16", remat_policy="products_saveable"
    )
    config.conditioning_dropout = 0.1
    config.times.name = "uniform"
    config.optimizer.update(
        learning_rate=1e-4,
        schedule="constant",
        warmup=0.0,
        clip_norm=placeholder(float),
        weight_decay=0.0,
    )
    config.averages.ema.steps = 6931.1  # a decay of 0.9999 per step
    # Every choice samples with 250 evaluations of the network.
    if choice == "sit":
        config.model.time_scale = 1.0
        config.sampling.update(sampler=dict(name="heun"), num_steps=125)
    elif choice == "dit":
        config.model.out_channels = 8
        config.process = dict(name="VariancePreservingTable")
        config.target = dict(name="noise")
        config.loss = dict(name="hybrid_loss")
        config.sampling.update(sampler=dict(name="ddpm"), num_steps=250)
        config.sampling.grid = dict(name="linspace_grid")
    else:
        config.model.update(name="LightningDiT_XL", patch_size=1)
        config.space.shape = (16, 16, 32)
        config.batch_size = 1024
        config.num_steps = 80_000
        config.times.name = "logit_normal"
        config.loss.direction_weight = 1.0
        config.optimizer.update(learning_rate=2e-4, b2=0.95)
        config.sampling.update(num_steps=250)
        config.sampling.grid.shift = 1 / 0.3
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.update(every=50_000, guidance_scale=1.5, per_class=1, batch_size=64)
    config.checkpoint.every = 10_000
    config.evaluation.num_samples = 50_000
    config.evaluation.measures.vgg16 = dict(name="VGG16Distance")
    return config
