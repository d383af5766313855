"""Text to image at the size of published systems, on a folder of captioned pictures.

python -m experiments.train --config=configs/text_to_image.py:stable_diffusion_3 \
    --config.condition.encoder=SYSTEM --config.space.published=SYSTEM/vae \
    --config.data.directory=IMAGES --workdir=runs/text_to_image

The choices, for many accelerators: stable_diffusion_3 is MMDiT of 2 billion parameters at
1024×1024, and flux is FLUX.1's network of 12 billion. SYSTEM is a folder of that system as
diffusers saves it. The run uses its text encoders and its autoencoder. IMAGES holds pictures of any
sizes with captions (genjax/data/sets/folder.py).

Difference from Stable Diffusion 3's paper: a tenth of the examples drop their whole prompt, where
the paper drops each of the three text encoders in 46 % of them. FLUX's training is not published.

Prompts are encoded once, before training. Images are encoded within the step. To encode images once
too, add ",latents" to the choice and run python -m experiments.encode with the same flags. Not yet
run, so there is no score.

The numbers of training are genjax's own, and the same for both systems: steps, batch, learning
rate, EMA and the share of dropped captions. The network of flux is that of FLUX.1 [schnell].
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

SYSTEMS = ("stable_diffusion_3", "flux")
CHOICES = (*SYSTEMS, *(f"{system},latents" for system in SYSTEMS))


def get_config(choice: str = "stable_diffusion_3") -> ConfigDict:
    check_choice(choice, CHOICES)
    choice, _, space = choice.partition(",")
    name = "text_to_image_" + (f"{choice}_{space}" if space else choice)
    config = base.diffusion(name, name="folder", image_shape=(1024, 1024, 3))
    config.num_steps = 500_000
    config.batch_size = 1024
    config.condition = base.captions(
        encoder="runs/system",
        directory="runs/prompts",
        length=333,  # 77 tokens of CLIP and 256 of T5
        features=4096,
        pooled_features=2048,
    )
    config.model = dict(name="sd3_medium")
    if choice == "flux":
        config.condition.update(length=512, pooled_features=768)
        config.model.name = "flux_schnell"
    config.model.update(dtype="bfloat16", remat_policy="nothing_saveable")
    config.space = dict(name="Latents", published="runs/system/vae", batch_size=8)
    if space == "latents":
        config.space.update(directory="runs/text_to_image_latents", shape=(128, 128, 16))
        config.data.resize = True
    else:
        # Each batch has one height and width, of about as many pixels as image_shape (Podell et al.
        # 2023, section 2.3). A ratio of 1 and a multiple equal to image_shape's side give a single
        # size.
        config.data.buckets = dict(multiple=64, max_ratio=2.0)
    config.conditioning_dropout = 0.1
    config.times.shift = 3.0  # for 1024×1024 pixels (Esser et al. 2024, section 5.3.2)
    config.optimizer.update(learning_rate=1e-4, warmup=1000.0, schedule="constant")
    config.averages.ema.steps = 7000.0
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.update(
        every=10_000, guidance_scale=5.0, num_steps=28, per_class=1, batch_size=8
    )
    config.sampling.grid.shift = 3.0
    config.checkpoint.every = 5000
    config.evaluation.measures = dict(prompts=dict(name="PromptMatch"))
    return config
