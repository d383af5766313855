"""Text to video at the size of published systems, on latents of captioned clips.

python -m experiments.train --config=configs/text_to_video.py:wan_14b --config.mesh.context=8 \
    --config.condition.encoder=SYSTEM --config.space.published=SYSTEM/vae \
    --config.space.directory=LATENTS --config.data.directory=CLIPS --workdir=runs/text_to_video

Two choices are Wan 2.1's networks (Wan team 2025) on 81 frames of 720×1280 pixels, 75,600 tokens.
The third choice has Movie Gen's depth, width and heads (Polyak et al. 2024), and 256 frames of
768×768 pixels, 73,728 tokens. CLIPS is a folder of captioned clips (docs/guides/own_data.md), which
are read at 16 frames a second. SYSTEM is a folder of Wan 2.1 as diffusers saves it. LATENTS is a
folder that `python -m experiments.encode` has written. Not yet run, so there is no score.

The numbers of training are genjax's own. Those of sampling are the defaults of Wan's program: 50
steps, a guidance scale of 5 and a shift of 5. For the network of wan_1b, which the authors sample
at 480×832 pixels only, they recommend a guidance scale of 6 and a shift of 8 to 12. Movie Gen's 73K
tokens of 256 frames mean that its autoencoder compresses time 8 times. Wan's compresses time 4
times, so moviegen_30b needs an autoencoder or LATENTS of your own.

`python -m experiments.plan --config=configs/text_to_video.py:CHOICE --mesh=MESH --device=DEVICE`
plans a training step with 64 clips (memory of v5p by its compiler, libtpu 0.0.42):

    choice        parameters      mesh               device  memory   least time  largest term
    wan_1b         1,418,996,800  fsdp:64            v5p     41.0 GB      12.1 s  arithmetic
                                                     h100    34.6 GB       5.6 s  arithmetic
    wan_14b       14,288,491,584  fsdp:64,context:8  v5p     25.1 GB       7.8 s  arithmetic
                                                     h100    19.2 GB       3.6 s  arithmetic
    moviegen_30b  29,327,996,992  fsdp:64,context:8  v5p     37.3 GB      12.0 s  arithmetic
                                                     h100    29.5 GB       5.6 s  arithmetic
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

# Movie Gen's gated feed-forward layers have three matrices of 16,384 features. Wan's have two, so
# 24,576 features give the same number of parameters.
MOVIE_GEN = dict(name="Wan", width=6144, depth=48, num_heads=48, mlp_features=24_576)
WAN_720P = (21, 90, 160, 16)  # latents of 81 frames of 720×1280 pixels: 75,600 patches
CHOICES = ("wan_1b", "wan_14b", "moviegen_30b")


def get_config(choice: str = "wan_14b") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = base.diffusion(f"text_to_video_{choice}", name="clips", feature="video")
    config.data.image_shape = (81, 720, 1280, 3)
    config.num_steps = 100_000
    config.batch_size = 64
    config.condition = base.captions(
        encoder="runs/system",
        directory="runs/prompts",
        length=512,
        features=4096,
        pooled_features=0,  # UMT5 has none
    )
    config.space = dict(
        name="Latents",
        published="runs/system/vae",
        directory="runs/text_to_video_latents",
        shape=WAN_720P,
        batch_size=1,
    )
    config.model = dict(name="wan_1_3b" if choice == "wan_1b" else "wan_14b")
    if choice == "moviegen_30b":
        config.data.image_shape = (256, 768, 768, 3)  # 16 seconds
        config.space.shape = (32, 96, 96, 16)  # 73,728 patches
        config.model = dict(MOVIE_GEN)
    frames, height, width, _ = config.data.image_shape
    config.data.options = dict(size=(height, width), num_frames=frames, frames_per_second=16.0)
    config.model.update(dtype="bfloat16", remat_policy="nothing_saveable")
    config.conditioning_dropout = 0.1
    config.times.shift = 5.0  # for 720 rows, as in Wan's sampling
    config.optimizer.update(learning_rate=1e-4, warmup=1000.0, schedule="constant")
    config.averages.ema.steps = 7000.0
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.update(
        every=10_000, guidance_scale=5.0, num_steps=50, per_class=1, batch_size=8
    )
    config.sampling.grid.shift = 5.0
    config.checkpoint.every = 5000
    # A clip of 720 rows has 0.2 GB, so memory holds few.
    config.evaluation.num_samples = 32
    config.evaluation.measures = dict(motion=dict(name="Motion"))
    return config
