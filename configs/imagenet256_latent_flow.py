"""Class-conditional rectified flow with DiT-XL/2 on 32×32×4 latents of ImageNet at 256×256, for many accelerators.

python -m experiments.train --config=configs/imagenet256_latent_flow.py --workdir=runs/imagenet256_latent_flow

The latents are a tensorflow-datasets set with the features `image`, float32 [32, 32, 4] of about unit deviation, and
`label`. The autoencoder that makes them, and pictures out of samples, is to come; not run to its end yet.
"""

from ml_collections import ConfigDict

from configs import digits_flow


def get_config() -> ConfigDict:
    config = digits_flow.get_config()
    config.experiment = "imagenet256_latent_flow"
    config.num_steps = 400_000
    config.batch_size = 256
    config.data.update(
        name="imagenet256_latents",
        held_out_split="validation",
        image_shape=(32, 32, 4),
        num_classes=1000,
        flip=False,  # the mirrored latent is not the latent of the mirrored image
    )
    config.model = dict(
        name="DiT_XL", patch_size=2, dtype="bfloat16", remat_policy="dots_with_no_batch_dims_saveable"
    )
    config.conditioning_dropout = 0.1
    config.optimizer.update(learning_rate=1e-4, warmup_steps=0, weight_decay=0.0)
    config.averages.ema.steps = 7000  # 0.9999 a step
    config.mesh = dict(data=1, fsdp=-1)
    config.sampling.update(every=50_000, guidance_scale=1.5, per_class=1)
    config.checkpoint.every = 10_000
    config.evaluation.num_samples = 50_000
    return config
