"""The fields that every config has, and those of each family.

An optional argument of a named part, such as `eta` of a sampler, needs no field here: set it by
`--config.sampling.sampler.eta=1.0`, or in a config of your own.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Rows of the sample sheets of pictures.
PROMPTS = (
    "grinning face",
    "red heart",
    "tiger face",
    "red apple",
    "yellow car",
    "blue book",
    "flag: Japan",
    "woman firefighter",
    "clock face three oclock",
    "a green frog with a crown",
)


def experiment(
    name: str,
    task: str,
    data: dict[str, Any],
    watched: tuple[str, ...] = ("loss", "norm/gradient/total"),
    **fields: Any,
) -> ConfigDict:
    """Return the fields that every experiment has, and those of its family.

    Args:
        name: of the experiment.
        task: a class of experiments/tasks, or a dotted path.
        data: fields of the data set that differ from the usual ones.
        watched: metrics that tell whether a step explodes.
        fields: of the family.
    """
    return ConfigDict(
        dict(
            experiment=name,
            task=task,
            seed=0,
            data=dict(
                dict(
                    train_split="train",
                    held_out_split="test",
                    directory=placeholder(str),  # of the files, if not the usual one
                    options=dict(),  # further arguments of the data set's loader
                    feature="image",  # or "video"
                    flip=False,  # mirror half of the images, left to right
                    resize=False,  # resize and crop images to image_shape as they are read
                ),
                **data,
            ),
            space=dict(name="Pixels"),  # what the network works on: experiments/inputs/spaces.py
            # Intervals are in steps, and 0 is "off" for all of them.
            # of averages named PowerFunction, for widths chosen after training
            snapshot_every=1000,
            # −1: all devices left; fsdp splits the state too, tensor layers and context sequences
            mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
            accumulation_steps=1,  # parts of a batch that are computed one after the other
            log_every=100,
            # TensorBoard, WeightsAndBiases (genjax/training/writers.py) or your own, by any name:
            # --config.writers.tensorboard=TensorBoard
            writers=dict(),
            # How many updates that are NaN or infinite are left out before the run stops.
            max_skipped_steps=0,
            # Updates that explode are left out too: a metric is so many standard deviations above
            # its mean over the last 128 steps. 0 is off; OLMo takes 6.
            explosions=dict(deviations=0.0, metrics=watched),
            # step, 1 or later, after which five steps are traced into WORKDIR/profile
            profile_at=placeholder(int),
            **fields,
        )
    )


def checkpoint(every: int, keep: int) -> dict[str, Any]:
    """Return the fields of checkpoints: one `every` so many steps, the newest `keep` are kept."""
    return dict(
        every=every,
        keep=keep,
        keep_every=0,  # steps: checkpoints of its multiples are kept for good
        # A figure that is measured while training, "fid": its best checkpoint is kept too.
        keep_best=placeholder(str),
    )


def optimizer(**fields: Any) -> dict[str, Any]:
    """Return the fields of an optimizer.

    `name` is adamw, lion, muon or another of genjax/training/optimizers.py, whose arguments go here
    too. `warmup` is a number of steps, or below 1 a fraction of the run.
    """
    usual = dict(name="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.0, weight_decay=0.0)
    return dict(usual, clip_norm=placeholder(float)) | fields


def sampling(**fields: Any) -> dict[str, Any]:
    """Return the fields of sampling and of sample sheets."""
    return dict(
        dict(
            every=1000,  # steps from one sheet to the next
            per_class=10,  # columns of the sheets, whose rows are classes or prompts
            batch_size=500,  # samples made at once at most
            # a name in averages, "params", or "posthoc_0.12" for that relative width
            weights="ema",
            seed=0,
        ),
        **fields,
    )


def captions(prompts: tuple[str, ...] = PROMPTS, **fields: Any) -> dict[str, Any]:
    """Return the condition of captions, which MiniLM or the `encoder` among the fields encodes.

    Args:
        prompts: rows of the sample sheets.
    """
    usual = dict(
        name="Prompts",
        encoder="minilm",  # or a folder with the text encoders of a published system
        length=16,  # most tokens of a prompt
        features=384,  # of a token's state
        pooled_features=384,
        first_caption=1.0,  # probability of an example's first caption; else another one
    )
    return dict(usual, prompts=prompts, **fields)


def one_network(num_classes: int, **fields: Any) -> dict[str, Any]:
    """Return the usual fields of one class-conditional network; `fields` change and add some."""
    usual = dict(
        num_steps=5000,
        batch_size=64,  # of all devices together
        params_dtype=placeholder(str),  # "bfloat16": gradients at copies of float32 parameters
        # Of experiments/inputs/conditions.py.
        condition=dict(name="Classes", num_classes=num_classes),
        averages=dict(ema=dict(name="HalfLife", steps=692.8)),  # of genjax/training/ema.py
        checkpoint=checkpoint(every=1000, keep=3),
        # Measures are evaluators of experiments/evaluation, each with its arguments and, if it has
        # one, its own `every`. `every=0` evaluates at the end alone.
        evaluation=dict(
            every=0,
            num_samples=1000,
            labels="balanced",  # or "training": as frequent as in the training set
            measures=dict(samples=dict(name="Samples")),
        ),
    )
    return usual | fields


def diffusion(experiment_name: str, num_classes: int = 10, /, **data: Any) -> ConfigDict:
    """Return the fields of class-conditional rectified flow with a transformer."""
    fields = one_network(
        num_classes,
        model=dict(name="DiT"),  # of genjax/models/transformers or unets, or a dotted path
        # source, rank …: train low-rank adapters of a network (experiments/tasks/adapters.py)
        adapters=dict(),
        process=dict(name="RectifiedFlow"),  # of genjax/diffusion/processes.py
        target=dict(name="velocity"),  # of genjax/diffusion/targets.py
        loss=dict(name="simple_loss"),  # of genjax/diffusion/losses.py
        weighting=dict(name="uniform"),  # of genjax/diffusion/weightings.py
        # Of genjax/diffusion/times.py; also `shift`, and `variates`: "independent" or "stratified".
        times=dict(name="logit_normal"),
        conditioning_dropout=0.5,
        optimizer=optimizer(warmup=0.04, clip_norm=1.0, weight_decay=0.01),
        sampling=sampling(
            sampler=dict(name="euler"),  # of genjax/diffusion/samplers
            grid=dict(name="uniform_grid"),  # of genjax/diffusion/grids.py
            num_steps=50,
            guidance_scale=1.25,  # 1 is plain conditional sampling
        ),
    )
    data = dict(dequantize_levels=placeholder(int)) | data  # of pixels, to add noise within each
    return experiment(experiment_name, "Diffusion", data, **fields)


def distillation(config: ConfigDict, teacher: str | None = None, **method: Any) -> None:
    """Make a config of diffusion that of a student for few steps, which samples in one jump.

    Args:
        teacher: the run that it learns from; None for a method that learns from data.
        method: the name of one of experiments/tasks/methods, and its arguments.
    """
    config.task, config.method = "Distillation", method
    config.teacher = teacher or placeholder(str)
    # No guidance scale: the network has learned its guidance in training.
    config.sampling.update(num_steps=1, guidance_scale=1.0, sampler=dict(name="jump"))
    config.evaluation.measures.few_step_pictures = dict(name="FewStepPictures")


def masked_autoregression(
    experiment_name: str, num_classes: int = 10, /, **data: Any
) -> ConfigDict:
    """Return the fields of class-conditional masked autoregression of continuous tokens (MAR)."""
    config = diffusion(experiment_name, num_classes, **data)
    config.task = "MaskedAutoregression"
    del config.adapters
    config.patch_size = 1  # side of a token's patch
    config.repeats = 4  # times and noises drawn for each token in a step
    config.model.name = "MAR"
    config.conditioning_dropout = 0.1
    config.sampling.update(
        num_steps=8,  # in which all tokens are revealed
        schedule="cosine",  # of genjax/autoregression/masked.py
        token_steps=25,  # of the sampler, for the tokens of each step
        temperature=1.0,  # of the noise in the steps of a token's sampler, if it draws any
    )
    return config


def discrete_diffusion(experiment_name: str, num_classes: int = 10, /, **data: Any) -> ConfigDict:
    """Return the fields of class-conditional masked diffusion in continuous time (MDLM)."""
    config = diffusion(experiment_name, num_classes, **data)
    config.task = "DiscreteDiffusion"
    del config.data.dequantize_levels, config.weighting, config.adapters
    config.model.name = "TokenDiT"
    # Names of genjax/diffusion/discrete: processes.py, targets.py, losses.py and samplers.
    config.process = dict(name="Masked", schedule=dict(name="Linear"))
    config.target.name, config.loss.name = "leave_one_out", "bound_loss"
    config.times = dict(name="uniform", variates="stratified")
    config.conditioning_dropout = 0.1
    config.sampling.update(
        sampler=dict(name="ancestral"),
        num_steps=64,
        temperature=1.0,  # of tokens; 0 takes the most likely ones
    )
    return config


def gan(experiment_name: str, networks: str, num_classes: int = 10, /, **data: Any) -> ConfigDict:
    """Return the fields of a class-conditional GAN with R3GAN's loss.

    Args:
        networks: the module of genjax/models/gans that has both networks.
    """
    players = ("generator", "discriminator")
    return experiment(
        experiment_name,
        "GAN",
        data,
        watched=tuple(f"norm/gradient_of_{player}" for player in players),
        num_steps=1500,
        batch_size=64,  # of all devices together, and of all the discriminator's updates in a step
        model={player: dict(name=f"{networks}.{player.capitalize()}") for player in players},
        condition=dict(name="Classes", num_classes=num_classes),
        objective="relativistic",  # of genjax/adversarial/objectives.py
        # weight: what a penalty's mean is multiplied by, γ/2 for R1 and R2; every: steps between
        # two.
        regularizers={penalty: dict(weight=0.2, every=1) for penalty in ("r1", "r2")},
        augmentations=(),  # of genjax/adversarial/augmentation.py
        adaptive_augmentation=dict(),  # of genjax/adversarial/adaptive.py
        blur=dict(),  # sigma, images: genjax/adversarial/blur.py
        updates=dict(discriminator=1, generator=1, simultaneous=False),
        optimizer={player: optimizer(b1=0.0, b2=0.99) for player in players},
        averages=dict(ema=dict(name="HalfLife", steps=200.0)),
        checkpoint=checkpoint(every=500, keep=3),
        sampling=sampling(truncation=1.0),
        evaluation=dict(
            every=500,
            num_samples=1000,
            labels="balanced",
            measures=dict(samples=dict(name="Samples"), discriminator=dict(name="Discriminator")),
        ),
    )


def bidirectional(config: ConfigDict, bigbigan: bool = False) -> None:
    """Give a GAN's config an encoder and a discriminator of pairs: BiGAN, or BigBiGAN.

    The generator's optimizer is that of the encoder too.
    """
    config.task = "BidirectionalGAN"
    config.model.encoder = dict(name="Encoder")
    config.model.discriminator = dict(name="JointDiscriminator")
    config.evaluation.measures = dict(
        samples=dict(name="Samples"), inversions=dict(name="Inversions", every=0)
    )
    if bigbigan:
        config.objective, config.regularizers = "hinge", {}
        config.model.encoder.stochastic = True
        config.model.discriminator.update(unary=True, spectral_norm=True)


def inversion(experiment_name: str, num_classes: int = 10, /, **data: Any) -> ConfigDict:
    """Return the fields of an encoder for the generator of a finished GAN."""
    fields = one_network(
        num_classes,
        batch_size=64,  # of all devices together; as many images are generated
        generator_run=placeholder(str),  # the folder of a GAN's run
        model=dict(name="Encoder"),
        reconstruction=dict(name="l2"),  # of genjax/autoencoding/reconstruction.py
        # Of E(G(z)) − z, of G(E(x)) − x, and of LPIPS, which takes images of 16 pixels or more.
        weights=dict(latents=1.0, images=1.0, perceptual=0.0),
        optimizer=optimizer(warmup=0.02, clip_norm=1.0, b2=0.99),
        averages=dict(ema=dict(name="HalfLife", steps=200.0)),
        checkpoint=checkpoint(every=1000, keep=2),
        sampling=sampling(),
        evaluation=dict(
            every=0, num_samples=1000, measures=dict(inversions=dict(name="Inversions"))
        ),
    )
    return experiment(experiment_name, "Inversion", data, **fields)


def autoregression(
    experiment_name: str, levels: int, num_classes: int = 10, /, **data: Any
) -> ConfigDict:
    """Return the fields of a class-conditional autoregressive model of pixels.

    Args:
        levels: values that a pixel can take.
    """
    fields = one_network(
        num_classes,
        model=dict(name="PixelTransformer"),  # of genjax/models/autoregressive, or a dotted path
        likelihood=dict(name="categorical"),  # of genjax/autoregression/likelihoods.py
        order="raster",  # of genjax/autoregression/orders.py
        optimizer=optimizer(warmup=0.04, clip_norm=1.0),
        checkpoint=checkpoint(every=1000, keep=2),
        sampling=sampling(temperature=1.0),
    )
    config = experiment(experiment_name, "Autoregression", dict(levels=levels) | data, **fields)
    config.space.name = "Levels"
    config.evaluation.measures.likelihood = dict(name="ExactBits")
    return config


def tokens(experiment_name: str, task: str, num_classes: int = 10, /, **data: Any) -> ConfigDict:
    """Return the fields of a class-conditional model of a frozen tokenizer's codes.

    Args:
        task: "TokenAutoregression", "MaskedTokens" or "NextScale".
    """
    masked = dict(
        schedule="cosine",  # of genjax/autoregression/masked.py
        num_steps=12,
        choice_temperature=4.5,  # of the choice of tokens, in the first step
    )
    fields = one_network(
        num_classes,
        model=dict(),  # of genjax/models/autoregressive, or a dotted path
        prefix=dict(name="ClassPrefix"),  # of genjax/models/autoregressive/prefixes.py
        conditioning_dropout=0.1,
        optimizer=optimizer(warmup=0.04, clip_norm=1.0),
        sampling=sampling(
            guidance_scale=1.5,  # 1 is plain conditional sampling
            temperature=1.0,  # 0 takes the most likely tokens
            # Filters of unlikely tokens; None for no filter.
            top_k=placeholder(int),
            top_p=placeholder(float),
            min_p=placeholder(float),
            **(masked if task == "MaskedTokens" else {}),
        ),
    )
    config = experiment(experiment_name, task, data, **fields)
    if task == "MaskedTokens":
        config.label_smoothing = 0.1
    if task == "NextScale":
        del config.prefix  # its network has none
    config.space = tokenizer()
    return config


def tokenizer(**fields: Any) -> dict[str, Any]:
    """Return the space of a tokenizer's codes; `run` or `published` names the tokenizer."""
    space = dict(name="Tokens", run=placeholder(str), weights="ema")
    space["directory"] = placeholder(str)  # of codes, if experiments.encode writes them
    return dict(space, **fields)


def latents(run: str, **fields: Any) -> dict[str, Any]:
    """Return the space of an autoencoder's latents.

    Latents that experiments.encode has written have a `directory` and a `shape`.
    """
    return dict(name="Latents", run=run, weights="ema", **fields)


def autoencoder(experiment_name: str, /, **data: Any) -> ConfigDict:
    """Return the fields of an autoencoder with a perceptual loss and a discriminator."""
    return experiment(
        experiment_name,
        "Autoencoder",
        data,
        num_steps=1500,
        batch_size=16,
        model=dict(),  # of genjax/models/autoencoders
        condition=dict(name="Unconditional", num_rows=10),  # rows of the sheets
        reconstruction=dict(name="l1"),  # of genjax/autoencoding/reconstruction.py; its weight is 1
        weights=dict(),  # of the other terms; 0 leaves a term out
        adversary=dict(
            weight=0.5,  # 0: no discriminator at all
            adaptive=True,  # by gradients at the decoder's last layer
            start_step=300,
            objective="hinge",
            r1=dict(weight=0.0),
            feature_matching=0.0,  # in units of the weight above; needs a discriminator of sound
            network=dict(),  # PatchGAN
        ),
        optimizer={
            player: optimizer(warmup=100.0, clip_norm=1.0, b1=0.5, b2=0.9)
            for player in ("autoencoder", "discriminator")
        },
        averages=dict(ema=dict(name="HalfLife", steps=100.0)),
        checkpoint=checkpoint(every=500, keep=2),
        sampling=sampling(every=500),
        evaluation=dict(
            every=0, num_samples=384, measures=dict(reconstructions=dict(name="Reconstructions"))
        ),
    )


def family_measures(config: ConfigDict, num_samples: int, **measures: dict[str, Any]) -> None:
    """Set a family's measures: the given ones, the cost of a sample, and its bits per dimension."""
    own = {
        name: measure
        for name, measure in config.evaluation.measures.items()
        if name in ("bounds", "likelihood")
    }
    config.evaluation.num_samples = num_samples
    config.evaluation.measures = measures | dict(cost=dict(name="SamplingCost")) | own


def configs_of_all_fields() -> list[ConfigDict]:
    """Return a config of each family, and one of the parts that take any field.

    They have all fields that genjax reads, but for `config_fields` of tasks and spaces.
    """
    data = dict(name="digits", image_shape=(8, 8, 1))
    student, pairs_gan = diffusion("student", **data), gan("bigbigan", "dcgan", **data)
    distillation(student, name="MeanFlow")
    bidirectional(pairs_gan, bigbigan=True)
    families = diffusion, masked_autoregression, discrete_diffusion, inversion, autoencoder
    free = dict(averages={}, evaluation=dict(measures={}), data=dict(buckets={}))
    return [
        *(family("", **data) for family in families),
        *(tokens("", task, **data) for task in ("TokenAutoregression", "MaskedTokens")),
        autoregression("", 2, **data),
        gan("", "dcgan", **data),
        student,
        pairs_gan,
        ConfigDict(free),
    ]
