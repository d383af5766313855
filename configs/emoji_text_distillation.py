"""Text to image in four steps: a student of the emoji text run, on the latents of its autoencoder.

python -m experiments.train --config=configs/emoji_text_distillation.py:Semigroup \
    --workdir=runs/emoji_text_distillation
python -m experiments.sample --workdir=runs/emoji_text_distillation --prompt="red apple"

The teacher is a run of configs/emoji_text.py:cross_attention in runs/emoji_text, or
`--config.teacher`. The student starts from its parameters and learns its samples at guidance scale
3, so that sampling needs one evaluation of the network a step. Train the teacher first, by the
commands of configs/emoji_text.py. The choices:
- Semigroup: one jump equals two jumps of half the size.
- Consistency: jumps from neighbouring times end in the same picture. Samples jump to the end and
  get noise again.

No choice has been trained yet from this teacher. configs/emoji_families.py:consistency is the
second choice with less time: ten minutes of one CPU core for the teacher, and ten for the student.
It has 50.1 % of the captions right, and FD-VGG16 is 80.3. Its teacher has 58.1 % and 66.6. That
student had logit-normal times, which almost never reach noise, and jumped along the grid, which its
loss does not teach. The target is 95 % of the teacher's caption accuracy and 1.2 times its
FD-VGG16.
"""

from ml_collections import ConfigDict

from configs import emoji_text
from experiments.configuration.choices import check_choice

SAMPLERS = {"Semigroup": "jump", "Consistency": "consistency"}
CHOICES = tuple(SAMPLERS)


def get_config(choice: str = "Semigroup") -> ConfigDict:
    check_choice(choice, CHOICES)
    config = emoji_text.get_config("cross_attention")
    scale = config.sampling.guidance_scale
    config.experiment, config.task = f"emoji_text_distillation_{choice}", "Distillation"
    config.method = dict(name=choice, guidance_scale=scale)
    config.teacher = "runs/emoji_text"
    config.times = dict(name="uniform")
    config.sampling.update(num_steps=4, guidance_scale=1.0, sampler=dict(name=SAMPLERS[choice]))
    config.evaluation.measures.few_step_pictures = dict(name="FewStepPictures")
    return config
