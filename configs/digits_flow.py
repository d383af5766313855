"""Class-conditional rectified flow with a small DiT on the handwritten digits inside scikit-learn.

python -m experiments.train --config=configs/digits_flow.py --workdir=runs/digits_flow

5,000 steps take 77 s on 2 CPU cores, and the whole command 1 min 35 s. 99.7 % of 1,000 samples show
the requested class. Fréchet distance 0.829 (training digits 0.718); precision 0.93, recall 0.73.
"""

from ml_collections import ConfigDict

from experiments.configuration import base


def get_config() -> ConfigDict:
    config = base.diffusion("digits_flow", name="digits", image_shape=(8, 8, 1))
    config.model.update(patch_size=2, width=96, depth=3, num_heads=3, unroll=3)
    return config
