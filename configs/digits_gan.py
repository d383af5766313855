"""Class-conditional GANs on the handwritten digits inside scikit-learn, 8×8 pixels.

python -m experiments.train --config=configs/digits_gan.py:r3gan --workdir=runs/digits_gan_r3gan

The choice is dcgan, stylegan2, r3gan or vit_gan, all with R3GAN's loss (relativistic, R1 and R2). On 2 CPU cores:

choice     steps  seconds           class accuracy  Fréchet distance  precision / recall  samples with a twin
dcgan      1,000  34                98.6 %          1.05              0.90 / 0.68         6.7 %
stylegan2  2,000  238, others busy  96.6 %          1.94              0.94 / 0.24         2.8 %
r3gan      1,500  452, others busy  98.8 %          1.59              0.91 / 0.44         6.4 %
vit_gan    1,500  199, others busy  98.5 %          1.28              0.95 / 0.42         15 %, of which it warns
(training images)                                   0.718             0.92 / 0.89         1 %

1,000 samples of averaged weights, balanced labels. Pictures: samples.png and latent_walk.gif of the run's folder.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configuration.choices import check_choice

CHOICES = ("dcgan", "stylegan2", "r3gan", "vit_gan")


def get_config(choice: str = "r3gan") -> ConfigDict:
    check_choice(choice, CHOICES)
    num_steps, weight, learning_rate = {
        "dcgan": (1000, 1.0, 1e-3),
        "stylegan2": (2000, 3.0, 2.5e-3),
    }.get(choice, (1500, 0.2, 1e-3))
    optimizer = dict(
        name="adamw",  # or others: genjax/training/optimizers.py; their arguments go here too
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_steps=0,
        clip_norm=placeholder(float),
        weight_decay=0.0,
        b1=0.0,
        b2=0.99,
    )
    config = ConfigDict(
        dict(
            experiment=f"digits_gan_{choice}",
            task="ImageGAN",  # a class of experiments/tasks
            seed=0,
            num_steps=num_steps,
            batch_size=64,  # of all devices together, and of all the discriminator's updates in a step
            data=dict(
                name="digits",
                train_split="train",
                held_out_split="test",
                directory=placeholder(str),
                image_shape=(8, 8, 1),
                num_classes=10,
                flip=False,  # mirror half of the images, left to right
                resize=False,  # resize and crop images to image_shape as they are read
            ),
            model=dict(name=choice, generator=dict(), discriminator=dict()),  # a module of genjax/models
            conditional=True,
            objective="relativistic",  # of genjax/adversarial/objectives.py
            # weight: what a penalty's mean is multiplied by, γ/2 for R1 and R2; every: steps from one to the next.
            regularizers=dict(r1=dict(weight=weight, every=1), r2=dict(weight=weight, every=1)),
            augmentations=(),  # of genjax/adversarial/augmentation.py
            updates=dict(discriminator=1, generator=1, simultaneous=False),
            optimizer=dict(generator=optimizer, discriminator=dict(optimizer)),
            averages=dict(ema=dict(name="HalfLife", steps=200.0)),
            snapshot_every=500,
            mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
            accumulation_steps=1,
            log_every=100,
            profile_at=placeholder(int),
            checkpoint=dict(every=500, keep=3),
            sampling=dict(every=250, per_class=10, batch_size=500, truncation=1.0, weights="ema", seed=0),
            evaluation=dict(every=500, num_samples=1000, labels="balanced"),
        )
    )
    model = config.model
    if choice == "r3gan":
        sizes = dict(widths=(64, 32), cardinalities=(16, 8), blocks=(1, 1))
        mirrored = {name: size[::-1] for name, size in sizes.items()}
        model.generator = dict(sizes, latent_size=32, embedding_features=16, image_channels=1)
        model.discriminator = dict(mirrored, embedding_features=64)
    elif choice == "vit_gan":
        sizes = dict(patch_size=2, width=64, depth=2, num_heads=2, unroll=2)
        model.generator = dict(sizes, resolution=8, latent_size=32, image_channels=1)
        model.discriminator = dict(sizes)
    elif choice == "stylegan2":
        sizes = dict(resolution=8, channel_base=256, channel_max=64)
        styles = dict(latent_size=64, w_size=64, mapping_layers=2, style_mixing=0.5)
        model.generator = dict(sizes, **styles, image_channels=1)
        model.discriminator = dict(sizes, mapping_layers=2, group_size=8)
    else:
        sizes = dict(width=32, doublings=2)
        model.generator = dict(sizes, start=2, latent_size=32, image_channels=1)
        model.discriminator = dict(sizes)
    return config
