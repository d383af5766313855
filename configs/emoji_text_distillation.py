"""Text to image in four steps: a student of the emoji text run, on the latents of its autoencoder.

python -m experiments.train --config=configs/emoji_text_distillation.py:Semigroup \
    --workdir=runs/emoji_text_distillation
python -m experiments.sample --workdir=runs/emoji_text_distillation --prompt="red apple"

Train the teacher first, by the commands of configs/emoji_text.py:cross_attention. Its run is
runs/emoji_text, or `--config.teacher`. The student starts from the teacher's parameters, and learns
the teacher's samples at guidance scale 3. A step of sampling therefore needs one evaluation of the
network.

The choices:
- Semigroup: one jump equals two shorter jumps in a row.
- Consistency: jumps from neighbouring times end in the same picture. A sampling step jumps to the
  clean end and adds noise again.

Results on one of 2 CPU cores. All have the size of the five-minute run of configs/emoji_text.py:
--config.model.width=128 --config.model.num_heads=4 --config.averages.ema.steps=300

                       steps  time           training names  held-out names  FD-VGG16
teacher, 50 steps      4,000  12 min 22 s    57.0 %          49.8 %          67.6
Semigroup, 4 steps     3,600  27 min 12 s    56.2 %          48.7 %          66.3
Consistency, 4 steps   3,600  16 min 22 s    56.2 %          48.7 %          68.5

Both students keep 98 % of the teacher's caption accuracy. They need uniform times, because
logit-normal times almost never reach noise.
"""

from ml_collections import ConfigDict

from configs import emoji_text
from experiments.configuration import base
from experiments.configuration.choices import check_choice

SAMPLERS = {"Semigroup": "jump", "Consistency": "consistency"}
CHOICES = tuple(SAMPLERS)


def get_config(choice: str = "Semigroup") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = emoji_text.get_config("cross_attention")
    config.experiment = f"emoji_text_distillation_{choice}"
    scale = config.sampling.guidance_scale
    base.distillation(config, "runs/emoji_text", name=choice, guidance_scale=scale)
    config.times = dict(name="uniform")
    config.sampling.update(num_steps=4, sampler=dict(name=SAMPLERS[choice]))
    return config
