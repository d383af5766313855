"""Class-conditional rectified flow with a small U-Net (DDPM++) on Fashion-MNIST.

python -m experiments.train --config=configs/fashion_unet.py --workdir=runs/fashion_unet

This is the classical alternative to fashion_flow's transformer, with 744,401 parameters.

900 steps take 1,057 s on 2 CPU cores shared with other programs. A classifier that gets 85.1 % of
held-out images right finds 63.8 % of 2,000 samples in the requested class. Fréchet distance of
pixels 14.6 (training images 8.27); precision 0.62, recall 0.66; density 0.67, coverage 0.80.
"""

from ml_collections import ConfigDict

from experiments.configuration import base


def get_config() -> ConfigDict:
    config = base.diffusion("fashion_unet", name="fashion_mnist", image_shape=(28, 28, 1))
    config.num_steps = 900
    config.model = dict(
        name="SongUNet",
        width=16,
        multipliers=(1, 2, 4),  # at 28, 14 and 7 pixels
        blocks=1,
        attention_levels=(2,),
        time_scale=1000.0,
    )
    config.optimizer.update(learning_rate=2e-3, warmup=100.0)
    config.averages.ema.steps = 150.0
    config.sampling.update(every=500, guidance_scale=1.5)
    config.evaluation.num_samples = 2000
    return config
