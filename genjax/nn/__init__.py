"""What networks share."""

from genjax.nn.attention import attention as attention
from genjax.nn.attention import forward_mode as forward_mode
from genjax.nn.context_parallel import all_to_all_attention as all_to_all_attention
from genjax.nn.context_parallel import attention_over_mesh as attention_over_mesh
from genjax.nn.context_parallel import ring_attention as ring_attention
from genjax.nn.dense import Dense as Dense
from genjax.nn.embeddings import sincos_positions as sincos_positions
from genjax.nn.embeddings import sinusoidal_embedding as sinusoidal_embedding
from genjax.nn.modulation import Modulation as Modulation
from genjax.nn.modulation import VectorEmbedding as VectorEmbedding
from genjax.nn.modulation import modulate as modulate
from genjax.nn.patches import patchify as patchify
from genjax.nn.patches import unpatchify as unpatchify
from genjax.nn.quantizers import BinarySphericalQuantizer as BinarySphericalQuantizer
from genjax.nn.quantizers import FiniteScalarQuantizer as FiniteScalarQuantizer
from genjax.nn.quantizers import LookupFreeQuantizer as LookupFreeQuantizer
from genjax.nn.quantizers import Quantized as Quantized
from genjax.nn.quantizers import ResidualVectorQuantizer as ResidualVectorQuantizer
from genjax.nn.quantizers import VectorQuantizer as VectorQuantizer
from genjax.nn.scanned import scanned as scanned
from genjax.nn.sharding import constrain as constrain
from genjax.nn.text import Text as Text
