"""Pong with sound: one network draws frames and sound together, also for given actions.

python -m experiments.train --config=configs/pong.py:actions --workdir=runs/pong
python -m experiments.sample --workdir=runs/pong --given=0,1,2,3 --frames=40

ale-py plays the games: pip install '.[atari]'. The 4,096 training clips are recorded once and
cached. A clip has 16 frames of 32×32 grey pixels, 15 a second, and 512 samples of sound for each
frame.

The choices:
- joint: clips without actions.
- actions: the network also sees the action at each frame.

In half of the training examples, the first 4 frames and their sound are clean. The network thus
learns to continue clips, window by window (`JointRollOut`). The second command continues the first
4 frames of held-out clips.

The default is the short form, 900 steps. The longer form took 52 minutes of one CPU core:
--config.num_steps=3300 --config.averages.ema.steps=250
Then the same command with --workdir=runs/pong_longer and --init_from=runs/pong trained for as many
steps again, in 65 minutes on a shared core.

6,600 steps              events with sound  by chance  sounds without event  paddle misses by
both from noise          18 %               16 %       50 %
sound of given clips     98 %               27 %       40 %
clips of given sounds    18 %               16 %       33 %
given clips continued    21 %               21 %       53 %                  14 rows, 31 later
(still paddle)                                                               35 rows, 56 later
(the game)               100 %              28 %       4.8 %

The sound follows the ball of given clips, and the paddle follows the actions. Clips from noise do
not show the ball on a path yet. docs/results/video_and_sound.md says how this is measured, and what
makes the ball hard.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.configuration import base
from experiments.configuration.choices import check_choice

FRAMES, SIDE, FRAME_SAMPLES = 16, 32, 512
SAMPLE_RATE, FRAME_RATE = 7680, 15.0  # Hz, and frames a second
SOUND = (FRAMES * FRAME_SAMPLES, 1)
ACTIONS = 6  # of Pong
CHOICES = ("joint", "actions")


def get_config(choice: str = "actions") -> ConfigDict:
    check_choice(choice, CHOICES)
    clips = dict(name="atari", image_shape=(FRAMES, SIDE, SIDE, 1), sound_shape=SOUND)
    config = base.diffusion(f"pong_{choice}", feature="video", sample_rate=SAMPLE_RATE, **clips)
    config.data.options = dict(policy="pong_player", num_frames=FRAMES, size=SIDE)
    config.data.held_out_split = "test[:64]"
    config.task = "JointRollOut"
    # The ball has 5 % of the energy of what moves. A network on pixels in [−1, 1] left the ball
    # out. The ball stands out by 0.2 in these pixels, and by about 12 in standardized pixels.
    video, sound = dict(space="StandardizedPixels", floor=0.02), dict(space="Waveforms")
    config.space = dict(name="SoundAndVideo", video=video, sound=sound)
    config.space.sound_scale = 4.0
    config.num_steps = 900
    config.batch_size = 16
    config.condition = dict(
        name="PlayedClips",
        num_actions=ACTIONS if choice == "actions" else 0,
        frames=40,  # of held-out clips, and of the longest samples
        num_clips=64,
    )
    config.conditioning_dropout = 0.1 if choice == "actions" else 0.0
    config.model = dict(
        name="SoundAndVideoDiT",
        video_patch=(1, 8, 8),
        sound_patch=256,  # half a frame
        video_width=96,
        sound_width=96,
        depth=4,
        num_heads=3,
        frame_rate=FRAME_RATE,
        sound_rate=float(SAMPLE_RATE),
        absolute_positions=True,
        unroll=4,
    )
    # In half of the examples the first 4 frames and their sound are clean, so that the network
    # learns to continue clips.
    config.loss = dict(name="joint_loss", clean_share=0.2, noise_share=0.1)
    config.loss.update(continued_share=0.5, known_part=0.25)
    # A sound token of 96 features has 256 samples. Its head has rank 96, so a predicted velocity
    # would leave 62 % of the noise in the samples.
    config.target.name = "clean"
    config.weighting.name = "bounded_velocity"  # the velocity's loss
    config.modalities = dict(
        video=dict(weight=1.0, process=_flow(4.0)), sound=dict(weight=1.0, process=_flow(4.0))
    )
    config.optimizer.update(name="muon", learning_rate=2e-3, warmup=0.04)
    config.averages.ema.steps = 90.0
    config.checkpoint.every = 250
    config.sampling.update(every=0, num_steps=20, guidance_scale=1.0, per_class=1)
    config.sampling.update(modality_scale=placeholder(float), given=(), batch_size=64)
    config.sampling.frames = FRAMES
    # Euler's steps in t leave the noise levels of shifted processes. Samples would keep four times
    # the noise of the last time of the grid.
    config.sampling.sampler.name = "ddim"
    config.evaluation.measures = dict(play=dict(name="PlayedPong"))
    config.evaluation.num_samples = 64
    return config


def _flow(shift: float) -> dict[str, Any]:
    """Return the fields of a rectified flow whose noise is stronger by `shift` at equal times.

    At noise 0 a clean target says nothing about the noise, so known rows stay at a noise of 0.01.
    """
    flow = dict(name="RectifiedFlow", domain=(0.01 / shift, 1.0))
    return dict(name="Shifted", base=flow, shift=shift)
