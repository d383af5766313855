"""Class-conditional GANs on Fashion-MNIST, 60,000 pictures of clothes of 28×28 pixels.

python -m experiments.train --config=configs/fashion_gan.py:r3gan --workdir=runs/fashion_r3gan

The choice is dcgan or r3gan, with the losses of digits_gan. Not run to its end yet.
"""

from ml_collections import ConfigDict

from configs import digits_gan


def get_config(choice: str = "r3gan") -> ConfigDict:
    config = digits_gan.get_config(choice)
    config.experiment = f"fashion_gan_{choice}"
    config.num_steps = 2000
    config.data.update(name="fashion_mnist", image_shape=(28, 28, 1))
    config.evaluation.num_samples = 2000
    model = config.model
    if choice == "r3gan":
        sizes = dict(start=7, widths=(64, 32, 16), cardinalities=(16, 8, 4), blocks=(1, 1, 1))
        mirrored = {k: v[::-1] if isinstance(v, tuple) else v for k, v in sizes.items()}
        model.generator.update(sizes)
        model.discriminator.update(mirrored)
    elif choice == "dcgan":
        model.generator.update(start=7, doublings=2)
        model.discriminator.update(doublings=2)
    else:
        raise ValueError(f"the choices are dcgan, r3gan; got {choice!r}")
    return config
