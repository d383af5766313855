"""LTX-2 as the joint diffusion task calls it: modalities "video" and "sound", and one text."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.models.transformers.ltx2 import FRAMES_PER_SECOND, LTX2, STREAMS
from genjax.nn import Text

MODALITIES = {"video": "video", "sound": "audio"}  # streams of the network, by modality


def join_texts(texts: dict[str, Text]) -> Text:
    """Return the connectors' texts as one, whose tokens have the features of both."""
    tokens = jnp.concatenate([texts[name].tokens for name in STREAMS], axis=-1)
    return Text(tokens, jnp.zeros((len(tokens), 0)), texts["video"].mask)


class JointLTX2(LTX2):
    """The network `LTX2`, and its parameters, with the inputs of `SoundAndVideoDiT`.

    Attributes:
        frame_rate: of the video, in frames a second.
    """

    frame_rate: float = FRAMES_PER_SECOND

    @nn.compact
    def __call__(
        self,
        x: dict[str, Float[Array, "batch ..."]],
        t: dict[str, Float[Array, " batch ..."]],
        condition: Text,
    ) -> dict[str, Float[Array, "batch ..."]]:
        """Return the velocities, with the shapes of `x`.

        Args:
            x: "video" `[batch time height width channels]` and "sound" `[batch length channels]`.
            t: as of `LTX2`.
            condition: as of `join_texts`. From 2.3 on the texts have the widths of the streams.
        """
        of_streams = lambda tree: {stream: tree[name] for name, stream in MODALITIES.items()}
        features = condition.tokens.shape[-1]
        places = [self.width if self.gated else features // 2]
        texts = zip(STREAMS, jnp.split(condition.tokens, places, axis=-1), strict=True)
        text = {name: Text(tokens, mask=condition.mask) for name, tokens in texts}
        out = super().__call__(of_streams(x), of_streams(t), text, self.frame_rate)
        return {name: out[stream] for name, stream in MODALITIES.items()}
