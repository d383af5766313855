"""digits_algebra on Fashion-MNIST, with the network and budget of fashion_flow.

python -m experiments.train --config=configs/fashion_algebra.py:variance_preserving,noise \
    --workdir=runs/fashion_ddpm

1,500 steps take 316 to 832 s on 2 CPU cores shared with other programs. Results on 2,000 samples
(training images 8.27). The order of the choices is that of the digits:

choice                     class accuracy  Fréchet distance
rectified_flow,velocity    67.5 %          15.5
edm,edm                    33.7 %          24.6
variance_preserving,noise  29.7 %          50.2
"""

from ml_collections import ConfigDict

from configs import fashion_flow
from configs.digits_algebra import CHOICES as CHOICES
from configs.digits_algebra import choose


def get_config(choice: str = "rectified_flow,velocity") -> ConfigDict:
    config = fashion_flow.get_config()
    config.experiment = "fashion_algebra_" + choice.replace(",", "_")
    choose(config, choice)
    return config
