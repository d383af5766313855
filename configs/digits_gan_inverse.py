"""From an image of a digit back to its latents: encoders of GANs on the digits of scikit-learn.

python -m experiments.train --config=configs/digits_gan_inverse.py:bigan --workdir=runs/digits_bigan
python -m experiments.train --config=configs/digits_gan.py:dcgan --workdir=runs/digits_gan_dcgan
python -m experiments.train --config=configs/digits_gan_inverse.py:encoder \
    --workdir=runs/digits_encoder

The choice bigan trains a generator, an encoder and a discriminator of pairs (x, z) together. The
choice bigbigan has a stochastic encoder and the hinge loss. It also scores x alone and z alone.

The choice encoder learns the inverse of a finished generator. By default this generator is that of
runs/digits_gan_dcgan, which the second command makes. `--config.generator_run` names the run of
another GAN, which may be bidirectional. The latents of a StyleGAN2 are w:

python -m experiments.train --config=configs/digits_gan.py:stylegan2 --workdir=runs/digits_stylegan2
python -m experiments.train --config=configs/digits_gan_inverse.py:encoder \
    --config.generator_run=runs/digits_stylegan2 --workdir=runs/digits_encoder_w

The report of a run compares the ways back: gradient descent, the encoder, and both.

Each was trained for 5,000 steps, which took 2 to 5 minutes on one CPU core. Errors are mean
squares, of pixels in [−1, 1] and of the latents, for 100 held-out digits. An encoder that always
returns the mean latent has an error of 1 in the latents.

way back                       pixels  latents  ms per image
gradient descent, on dcgan     0.0063  0.57     37
encoder, on dcgan              0.038   0.54     0.011
encoder, then 20 steps         0.018   0.46     1.3
gradient descent, on bigan     0.0062  0.68     37
joint training                 0.237   1.65     0.011
joint training, then 20 steps  0.049   1.36     1.3
encoder, on bigan              0.043   0.62     0.011
gradient descent, on bigbigan  0.012   0.88     46
joint training of bigbigan     0.258   2.02     0.020
gradient descent, stylegan2    0.0018  0.31     348
encoder, on stylegan2          0.041   0.15     0.021
encoder, then 20 steps         0.011   0.11     14

Descent takes 500 steps. Samples of bigan: accuracy 99.7 %, Fréchet distance 0.97. Samples of
bigbigan: 99.1 %, 0.90.
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("bigan", "bigbigan", "encoder")
SMALL = dict(width=64, doublings=2)


def get_config(choice: str = "bigan") -> ConfigDict:
    check_choice(choice, CHOICES)
    name, data = f"digits_gan_inverse_{choice}", dict(name="digits", image_shape=(8, 8, 1))
    if choice == "encoder":
        config = base.inversion(name, **data)
        config.generator_run = "runs/digits_gan_dcgan"
        config.model.update(SMALL)
        return config
    config = base.gan(name, "dcgan", **data)
    base.bidirectional(config, bigbigan=choice == "bigbigan")
    config.num_steps = 5000
    config.sampling.every = config.snapshot_every = config.evaluation.every = 1000
    config.model.generator.update(width=32, doublings=2, start=2, latent_size=32, image_channels=1)
    config.model.encoder.update(SMALL)
    config.model.discriminator.update(width=32, doublings=2, hidden=128)
    for penalty in config.regularizers.values():
        penalty.weight = 1.0
    return config
