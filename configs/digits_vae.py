"""A variational autoencoder of dense layers on the handwritten digits inside scikit-learn.

python -m experiments.train --config=configs/digits_vae.py:elbo --workdir=runs/digits_vae_elbo

The choice is elbo, or iwae, which trains on the importance-weighted bound of 50 samples. Pixels
have 17 levels with discretized logistic probabilities, so bounds on bits per dimension can be
compared with a flow's likelihood.

Results on 360 held-out digits, 5,000 steps on one CPU core:

choice  seconds  ELBO              bound of 500 samples  bits per dimension  active units
elbo    15       −87.2 ± 0.7 nats  −83.0 nats            1.871               15 of 16
iwae    168      −96.0 ± 0.8 nats  −84.0 nats            1.893               16 of 16
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("elbo", "iwae")


def get_config(choice: str = "elbo") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = base.experiment(
        f"digits_vae_{choice}",
        "VariationalAutoencoder",
        dict(name="digits", image_shape=(8, 8, 1)),
        num_steps=5000,
        batch_size=64,
        params_dtype=placeholder(str),
        model=dict(name="VAE", latent_size=16, width=256, depth=2),
        condition=dict(name="Unconditional", num_rows=10),
        # Likelihoods are functions of genjax/autoencoding/likelihoods.py.
        likelihood=dict(name="discretized_logistic", levels=17),
        bound=dict(
            num_samples=50 if choice == "iwae" else 1,  # above 1: the importance-weighted bound
            beta=1.0,
            free_nats=0.0,  # nats that each latent may carry at no cost
        ),
        # The network soon memorizes 1,437 digits, hence the weight decay.
        optimizer=base.optimizer(warmup=0.04, clip_norm=10.0, weight_decay=0.3),
        averages=dict(ema=dict(name="HalfLife", steps=692.8)),
        checkpoint=base.checkpoint(every=2500, keep=2),
        sampling=base.sampling(every=2000),
        evaluation=dict(
            every=0,
            num_samples=1000,
            labels="none",
            measures=dict(
                samples=dict(name="Samples"), bounds=dict(name="Bounds", num_importance_samples=500)
            ),
        ),
    )
    config.snapshot_every = 5000
    return config
