"""digits_algebra on Fashion-MNIST: the process and target of three papers, on the network and budget of fashion_flow.

python -m experiments.train --config=configs/fashion_algebra.py:variance_preserving,noise --workdir=runs/fashion_ddpm

On 2 CPU cores, with other work on them, 1,500 steps took 316 to 832 s; the figures are in the README.
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
