"""Fine-tune a published text-to-image network on your own captioned pictures, by low-rank adapters.

python -m experiments.train --config=configs/text_to_image_lora.py:flux \
    --config.adapters.source=SYSTEM/transformer --config.condition.encoder=SYSTEM \
    --config.space.published=SYSTEM/vae --config.data.directory=IMAGES --workdir=runs/lora

The choice is stable_diffusion_3 (2 billion parameters) or flux (12 billion). SYSTEM is a folder of
that system as diffusers saves it. IMAGES is a folder of pictures with captions
(genjax/data/sets/folder.py). The network's weights stay frozen. Queries, keys and values get
adapters of rank 16 (Hu et al. 2021): 7,077,888 parameters, or 22,413,312 for FLUX.1.

The numbers of training are genjax's own. Not yet run, so there is no score.
"""

from ml_collections import ConfigDict

from configs import text_to_image
from experiments.configuration.choices import check_choice

CHOICES = text_to_image.SYSTEMS


def get_config(choice: str = "stable_diffusion_3") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = text_to_image.get_config(choice)
    config.experiment = f"text_to_image_lora_{choice}"
    config.num_steps = 2000
    config.batch_size = 16
    config.adapters = dict(
        source="runs/system/transformer",
        rank=16,
        dtype="bfloat16",
        remat_policy="nothing_saveable",
    )
    config.optimizer.update(learning_rate=1e-4, warmup=100.0, schedule="constant")
    config.averages.ema.steps = 200.0
    config.sampling.every = 500
    config.checkpoint.every = 500
    return config
