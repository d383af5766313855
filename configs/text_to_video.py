"""Text to video at the size of published systems, for plans: 81 frames of 1280×720 pixels.

python -m experiments.plan --config=configs/text_to_video.py --mesh=fsdp:64,context:8 --device=v5p

The network is PixArt with the sizes of Wan 2.1's 14 billion parameters (Wan team 2025, table 2). It
has width 5,120, 40 blocks of 40 heads with self- and cross-attention, and text of 512 tokens. Wan's
latents are 21 frames of 90×160 in patches of 1×2×2: 75,600 tokens. There is no network of video
yet, so one picture of 420×720 with as many patches takes their place. The config serves for plans
only; nothing can be trained with it.
"""

from ml_collections import ConfigDict

from configs import text_to_image


def get_config() -> ConfigDict:
    config = text_to_image.get_config("flux,latents")
    config.experiment = "text_to_video"
    config.num_steps = 100_000
    config.batch_size = 64
    config.space.update(directory="runs/text_to_video_latents", shape=(420, 720, 16))
    config.model = dict(
        name="PixArt",
        patch_size=2,
        width=5120,
        depth=40,
        num_heads=40,
        mlp_ratio=2.7,  # 13,824 inner features
        base_size=210,
        dtype="bfloat16",
        remat_policy="nothing_saveable",
    )
    config.times.shift = 5.0
    config.sampling.num_steps = 50
    config.sampling.grid.shift = 5.0
    return config
