"""Class-conditional diffusion on latents of ImageNet at 256×256, as published, for many accelerators.

The choices: sit, rectified flow with DiT-XL/2 (Ma et al. 2024, SiT); dit (Peebles & Xie 2023): DDPM's steps, noise predicted and its
variance learned; lightning_dit, rectified flow with LightningDiT-XL/1 on 16×16×32 latents (Yao & Wang 2025), its 64 epochs.

python -m experiments.encode --config=configs/imagenet256_latent_flow.py --config.space.published=VAE --config.data.directory=IMAGES
python -m experiments.train --config=configs/imagenet256_latent_flow.py --config.space.published=VAE --config.data.directory=IMAGES --workdir=runs/imagenet256_latent_flow

VAE is a folder with Stable Diffusion's autoencoder as diffusers saves it (config.json and diffusion_pytorch_model.safetensors), for
lightning_dit one of latents of that shape; IMAGES one of pictures of any sizes in a folder per class (genjax/data/sets/folder.py).

Other than theirs are: latents are the means of the encoder's Gaussians, standardized by channel, where DiT and SiT draw from them and
scale all by one number; times of dit lie also between the tabulated steps; guidance is of all channels at all times, where DiT's
is of three of four and LightningDiT's is 10 from a tenth of the time on. The length is that of the papers' comparisons; SiT's and
DiT's best figures are of 7 million steps. Not run to its end yet.
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
    config.averages.ema.steps = 6931.1  # a decay of 0.9999 a step
    # 250 evaluations of the network
    if choice == "sit":
        config.sampling.update(sampler=dict(name="heun"), num_steps=125)
    elif choice == "dit":
        config.model.out_channels = 8
        config.process = dict(name="VariancePreservingTable")
        config.target = dict(name="noise")
        config.loss = dict(name="hybrid_loss")
        config.sampling.update(sampler=dict(name="ddpm"), num_steps=250)
        config.sampling.grid = dict(name="trailing_grid")
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
