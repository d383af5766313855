"""Class-conditional rectified flow with a small DiT on the handwritten digits inside scikit-learn.

python -m experiments.train --config=configs/digits_flow.py --workdir=runs/digits_flow

On 2 CPU cores: 5,000 steps in 77 s, 1 min 35 s with all else. Of 1,000 samples 99.7 % are
the class asked for; Fréchet distance 0.829 (training digits 0.718); precision 0.93, recall 0.73.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="digits_flow",
            task="ImageDiffusion",  # a class of experiments/tasks
            seed=0,
            num_steps=5000,
            batch_size=64,  # of all devices together
            data=dict(
                name="digits",  # or any tensorflow-datasets name
                train_split="train",
                held_out_split="test",
                directory=placeholder(str),  # of prepared datasets, if not the usual one
                image_shape=(8, 8, 1),
                num_classes=10,
                flip=False,  # mirror half of the images, left to right
                resize=False,  # resize and crop images to image_shape as they are read
                dequantize_levels=placeholder(int),  # of the pixels, to train on them with noise within each
            ),
            autoencoder=dict(  # on whose latents to work: of a run, or of published weights; pixels if neither
                run=placeholder(str),
                weights="ema",
                published=placeholder(str),
                module="autoencoder_kl",  # of genjax/pretrained, to load the published ones
            ),
            model=dict(name="DiT", patch_size=2, width=96, depth=3, num_heads=3, unroll=3),
            process=dict(name="RectifiedFlow"),  # of genjax/diffusion/processes.py, with its arguments
            target=dict(name="velocity"),  # of genjax/diffusion/targets.py
            loss=dict(name="simple_loss"),  # of genjax/diffusion/losses.py, likewise
            weighting=dict(name="uniform"),  # of genjax/diffusion/weightings.py, likewise
            times=dict(  # of genjax/diffusion/times.py, likewise; variates: independent or stratified
                name="logit_normal", shift=1.0, variates="independent"
            ),
            conditioning_dropout=0.5,
            optimizer=dict(
                name="adamw",  # or lion, muon, …: genjax/training/optimizers.py; their arguments go here too
                learning_rate=1e-3,
                schedule="cosine",  # or "constant", after the warm-up
                warmup_steps=200,
                clip_norm=1.0,
                weight_decay=0.01,
            ),
            averages=dict(  # of the parameters: any number, of genjax/training/ema.py, each with its arguments
                ema=dict(name="HalfLife", steps=692.8),  # a decay of 0.999 a step
            ),
            snapshot_every=1000,  # steps; of averages named PowerFunction, for widths chosen after training
            # −1: all devices left; fsdp splits the state too, tensor layers and context sequences
            mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
            accumulation_steps=1,  # parts of a batch that are computed one after the other
            params_dtype=placeholder(str),  # "bfloat16": gradients at copies of float32 parameters
            log_every=100,
            profile_at=placeholder(int),  # step after which five steps are traced into WORKDIR/profile
            checkpoint=dict(every=1000, keep=3),
            sampling=dict(
                every=1000,
                per_class=10,  # columns of the pictures, whose rows are classes; of many classes some
                batch_size=500,  # samples made at once at most
                sampler=dict(name="euler"),  # of genjax/diffusion/samplers, with its arguments
                grid=dict(name="uniform_grid", shift=1.0),  # of genjax/diffusion/grids.py, likewise
                num_steps=50,
                guidance_scale=1.25,  # 1 is plain conditional sampling
                weights="ema",  # a name in averages, "params", or "posthoc_0.12" for that relative width
                seed=0,
            ),
            evaluation=dict(
                every=0,  # at the end alone
                num_samples=1000,
                labels="balanced",  # or "training": with the frequencies of the training set
                vgg16=False,  # whether to take the Fréchet distance of VGG16's features too: pip install '.[lpips]'
                features=dict(  # weights of your own, for what the literature reports: experiments/evaluation/features/features.py
                    inception=placeholder(str),  # a file: FID, KID, Inception score, precision and recall
                    dinov2=placeholder(str),  # a folder: FD-DINOv2
                    clip=placeholder(str),  # a folder: CLIP score, of models of prompts
                ),
                reference=dict(  # what these compare samples with: statistics in .npz files, which are written if absent
                    split=placeholder(str),  # of the data; that of training if None
                    inception=placeholder(str),  # file, also of published statistics
                    dinov2=placeholder(str),
                ),
            ),
        )
    )
