"""The digits as continuous data, for likelihoods: digits_flow with uniform noise within each of 17 levels of grey.

python -m experiments.train --config=configs/digits_likelihood.py --workdir=runs/digits_likelihood
python -m experiments.likelihood --workdir=runs/digits_likelihood --levels=17 --count=360
"""

from ml_collections import ConfigDict

from configs import digits_flow


def get_config() -> ConfigDict:
    config = digits_flow.get_config()
    config.experiment = "digits_likelihood"
    config.data.dequantize_levels = 17
    config.times.name = "uniform"  # the likelihood counts all times
    return config
