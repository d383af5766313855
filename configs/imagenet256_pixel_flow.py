"""JiT-B/16: class-conditional diffusion on the pixels of ImageNet at 256×256, for accelerators.

python -m experiments.train --config=configs/imagenet256_pixel_flow.py \
    --config.data.directory=IMAGES --workdir=runs/imagenet256_pixel_flow

IMAGES holds pictures of any sizes, in one folder per class (genjax/data/sets/folder.py). The
settings are the paper's (Li & He 2025, JiT) for 200 epochs: the network predicts the clean image,
and the loss is that of the velocity. Times are mirrored, since the paper's times run from noise to
data.

Differences from the paper:
- Heun's correction is taken in the variables x/alpha and sigma/alpha. As in the paper, the last
  step is an Euler step.
- Sampling does not bound the velocity near the clean end. The paper's velocity has a divisor of at
  least 0.05.
- One average of the weights is kept, with the released code's first decay. The code has a second
  one of 0.9996.

Not yet run, so there is no score. The paper has FID 4.37. The step was compiled and run at toy size
only.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configuration import base


def get_config() -> ConfigDict:
    images = dict(name="folder", image_shape=(256, 256, 3), resize=True, flip=True)
    config = base.diffusion("imagenet256_pixel_flow", 1000, **images)
    epoch = 1_281_167 // 1024
    config.batch_size, config.num_steps = 1024, 200 * epoch
    config.model = dict(name="JiT_B", dtype="bfloat16", remat_policy="products_saveable")
    config.conditioning_dropout = 0.1
    config.target.name = "clean"
    config.weighting = dict(name="bounded_velocity", smallest=0.05)
    config.times = dict(name="logit_normal", mean=0.8, deviation=0.8)
    config.optimizer.update(
        learning_rate=2e-4,
        b2=0.95,
        schedule="constant",
        warmup=5.0 * epoch,
        clip_norm=placeholder(float),
        weight_decay=0.0,
    )
    config.averages.ema.steps = 6931.1  # a decay of 0.9999 per step
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.update(
        sampler=dict(name="edm_heun"), num_steps=50, guidance_scale=2.9, every=50_000
    )
    # Steps are 0.02 long, and the paper guides those at t < 0.9.
    config.sampling.update(guidance_interval=(0.0, 0.89), per_class=1, batch_size=64)
    config.checkpoint.every = 10_000
    config.evaluation.num_samples = 50_000
    config.evaluation.measures.vgg16 = dict(name="VGG16Distance")
    return config
