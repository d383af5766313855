"""Class-conditional rectified flow with a small U-Net (DDPM++) on Fashion-MNIST.

python -m experiments.train --config=configs/fashion_unet.py --workdir=runs/fashion_unet

The classical alternative to the transformer of fashion_flow, in about its time. Not run to its end yet.
"""

from ml_collections import ConfigDict

from configs import fashion_flow


def get_config() -> ConfigDict:
    config = fashion_flow.get_config()
    config.experiment = "fashion_unet"
    config.num_steps = 900
    config.model = dict(
        name="SongUNet",
        width=16,
        multipliers=(1, 2, 4),  # at 28, 14 and 7 pixels
        blocks=1,
        attention_levels=(2,),
        time_scale=1000.0,
    )
    return config
