"""Text to video with sound at the size of LTX-2, on latents of captioned clips with sound.

python -m experiments.train --config=configs/sound_and_video.py:ltx_2_3 --config.data.name=LATENTS \
    --config.condition.encoder=SYSTEM --workdir=runs/sound_and_video

The choices are the networks of LTX-2.0 and 2.3 (HaCohen et al. 2026). A clip has 121 frames of
512×768 pixels at 24 frames a second, and 5 s of stereo sound. The frames are 6,144 tokens and the
sound 126. SYSTEM is a folder of LTX-2 as diffusers saves it. LATENTS is a function of your own,
`package.module.load`. It returns a data set with captions, whose `video` and `audio` are latents of
LTX-2's autoencoders, float32 with mean 0 and deviation 1. Samples are latents too. Not yet run, so
there is no score.

The numbers of training are genjax's own. Those of sampling are the defaults of the authors'
program, except that it also guides by perturbed attention, and rescales what is guided.

`python -m experiments.plan --config=configs/sound_and_video.py:CHOICE --mesh=fsdp:64 --device=h100`
plans a training step with 64 clips. Arithmetic is the largest term.

    choice       parameters   memory  least time
    ltx_2_0  18,876,174,592  16.7 GB      0.82 s
    ltx_2_3  18,988,838,144  17.2 GB      0.82 s
"""

from ml_collections import ConfigDict

from configs.text_to_audio import PROMPTS
from experiments.configuration import base
from experiments.configuration.choices import check_choice

VIDEO, SOUND = (16, 16, 24, 128), (126, 128)  # latents of 121 frames, and of their sound
CHOICES = ("ltx_2_0", "ltx_2_3")


def get_config(choice: str = "ltx_2_3") -> ConfigDict:
    check_choice(choice, CHOICES)
    data = dict(name="latents.load", image_shape=VIDEO, sound_shape=SOUND)
    config = base.diffusion(f"sound_and_video_{choice}", feature="video", **data)
    config.task = "JointDiffusion"
    config.space = dict(
        name="SoundAndVideo", video=dict(space="Points"), sound=dict(space="Points")
    )
    config.num_steps = 100_000
    config.batch_size = 64
    gated = choice == "ltx_2_3"
    config.condition = base.captions(
        PROMPTS,
        name="SoundingClips",
        encoder="runs/system",
        directory="runs/prompts",
        length=1024,
        features=4096 + 2048 if gated else 2 * 3840,  # of the connectors' texts together
        pooled_features=0,
    )
    config.model = dict(
        name="JointLTX2",
        width=4096,
        audio_width=2048,
        depth=48,
        num_heads=32,
        gated=gated,
        dtype="bfloat16",
        remat_policy="nothing_saveable",
    )
    config.loss = dict(name="joint_loss", clean_share=0.2, noise_share=0.1)
    config.modalities = dict(video=dict(weight=1.0), sound=dict(weight=1.0))
    config.conditioning_dropout = 0.1
    config.optimizer.update(learning_rate=1e-4, warmup=1000.0, schedule="constant")
    config.averages.ema.steps = 7000.0
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.update(every=0, num_steps=30 if gated else 40, per_class=1, batch_size=8)
    del config.sampling.guidance_scale
    config.sampling.update(guidance_scale=dict(video=3.0, sound=7.0), modality_scale=3.0, given=())
    config.checkpoint.every = 5000
    config.evaluation.measures = dict()
    return config
