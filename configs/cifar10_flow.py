"""Class-conditional rectified flow with DiT-S/2 on CIFAR-10, for one accelerator.

python -m experiments.train --config=configs/cifar10_flow.py --workdir=runs/cifar10_flow

Not yet run to the end, so there is no score.
"""

from ml_collections import ConfigDict

from experiments.configuration import base


def get_config() -> ConfigDict:
    config = base.diffusion("cifar10_flow", name="cifar10", image_shape=(32, 32, 3), flip=True)
    config.num_steps = 200_000
    config.batch_size = 256
    config.model = dict(name="DiT_S", patch_size=2, dtype="bfloat16")
    config.conditioning_dropout = 0.1
    config.optimizer.update(learning_rate=3e-4, warmup=5000.0)
    config.averages.ema.steps = 7000.0  # a decay of 0.9999 per step
    config.sampling.update(every=10_000, guidance_scale=1.5)
    config.checkpoint.every = 10_000
    config.evaluation.num_samples = 10_000
    return config
