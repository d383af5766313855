"""What networks share."""

from genjax.nn.attention import attention as attention
from genjax.nn.dense import Dense as Dense
from genjax.nn.embeddings import sincos_positions as sincos_positions
from genjax.nn.embeddings import sinusoidal_embedding as sinusoidal_embedding
from genjax.nn.patches import patchify as patchify
from genjax.nn.patches import unpatchify as unpatchify
from genjax.nn.sharding import constrain as constrain
