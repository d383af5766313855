"""Text to sound at the size of Stable Audio Open, on latents of captioned sounds.

python -m experiments.train --config=configs/text_to_audio.py --config.data.directory=SOUNDS \
    --config.condition.encoder=SYSTEM --config.space.published=SYSTEM/vae \
    --config.space.directory=LATENTS --workdir=runs/text_to_audio

As in Evans et al. 2024, a sound has 47.6 s of stereo at 44.1 kHz, or 1,024 latents of 64 channels.
SYSTEM is a folder of Stable Audio Open as diffusers saves it. SOUNDS is a folder of sounds with
captions. LATENTS is a folder that `python -m experiments.encode` has written. Not yet run, so there
is no score.

The condition is the text and the seconds at which the sound starts and ends. Here every sound
starts at 0 s and ends at its whole length.

Differences from the authors' program, stable-audio-tools: its learning rate falls as
1/√(1 + step/1,000,000) after an exponential warm-up, where ours is constant after a linear one. Its
EMA has the decay 1 − step^−0.75, at most 0.9999, which is a half-life of 6,931 steps. The model
card samples by DPM-Solver++(3M) with noise, where ours is 2M; `dpm_solver_pp_3m` is there too. The
numbers of steps and of sounds in a batch are our own.

`python -m experiments.plan --config=configs/text_to_audio.py --mesh=fsdp:16 --device=h100` plans a
training step with 256 sounds. The network has 1,056,939,136 parameters. Each device needs 25.2 GB.
A step takes at least 0.12 s, and arithmetic is the largest term.
"""

from ml_collections import ConfigDict

from experiments.configuration import base

FRAMES, FACTOR, SAMPLE_RATE = 1024, 2048, 44_100  # latents, and samples that one stands for
PROMPTS = ("a dog barks twice", "rain on a tin roof", "a drum loop, 120 beats per minute")


def get_config() -> ConfigDict:
    samples = FRAMES * FACTOR
    options = dict(sample_rate=SAMPLE_RATE, seconds=samples / SAMPLE_RATE, channels=2)
    config = base.diffusion(
        "text_to_audio",
        name="sound_folder",
        feature="audio",
        image_shape=(samples, 2),
        sample_rate=SAMPLE_RATE,
        options=options,
    )
    config.num_steps = 500_000
    config.batch_size = 256
    config.condition = base.captions(
        PROMPTS,
        encoder="runs/system",
        directory="runs/prompts",
        length=130,  # 128 of T5, and a token for each of start and end
        features=768,
        pooled_features=1536,  # start and end
    )
    config.space = dict(
        name="Latents",
        published="runs/system/vae",
        directory="runs/text_to_audio_latents",
        shape=(FRAMES, 64),
        batch_size=1,
    )
    config.model = dict(name="StableAudioDiT", dtype="bfloat16", remat_policy="products_saveable")
    # Up to the noise of deviation 500 from which the published system samples.
    config.process = dict(name="VariancePreservingCosine", domain=(0.0, 0.99872676))
    config.target.name = "v"
    config.times.name = "uniform"
    config.conditioning_dropout = 0.1
    config.optimizer.update(
        learning_rate=5e-5, warmup=1000.0, schedule="constant", weight_decay=1e-3
    )
    config.averages.ema.steps = 7000.0
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.update(
        every=10_000, guidance_scale=7.0, num_steps=100, per_class=2, batch_size=6
    )
    config.sampling.sampler = dict(name="dpm_solver_pp_2m", eta=1.0)
    config.sampling.grid = dict(name="exponential_grid", sigma_min=0.3)
    config.checkpoint.every = 5000
    config.evaluation.measures = dict(distance=dict(name="SoundDistance"))
    return config
