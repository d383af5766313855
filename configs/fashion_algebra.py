"""digits_algebra on Fashion-MNIST: the process and target of three papers, on the network and budget of fashion_flow.

python -m experiments.train --config=configs/fashion_algebra.py:variance_preserving,noise --workdir=runs/fashion_ddpm
"""

from ml_collections import ConfigDict

from configs import fashion_flow
from configs.digits_algebra import choose


def get_config(choice: str = "rectified_flow,velocity") -> ConfigDict:
    config = fashion_flow.get_config()
    config.experiment = "fashion_algebra_" + choice.replace(",", "_")
    choose(config, choice)
    return config
