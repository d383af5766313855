"""Discrete diffusion: processes, targets, losses, guidance and samplers for tokens.

The words are those of `genjax.diffusion`: `x` is data, t = 0 is clean and t = 1 noise. At each
place x_t is x with probability alpha(t) and noise with probability sigma(t). Distributions of times
and grids are those of `genjax.diffusion`. A denoiser returns log p(x | x_t) of every token at every
place.
"""

from genjax.diffusion.discrete.guidance import guide as guide
from genjax.diffusion.discrete.guidance import temper as temper
from genjax.diffusion.discrete.likelihood import continuous_bound as continuous_bound
from genjax.diffusion.discrete.likelihood import discrete_bound as discrete_bound
from genjax.diffusion.discrete.losses import bound_loss as bound_loss
from genjax.diffusion.discrete.losses import hybrid_loss as hybrid_loss
from genjax.diffusion.discrete.losses import score_entropy_loss as score_entropy_loss
from genjax.diffusion.discrete.losses import simple_loss as simple_loss
from genjax.diffusion.discrete.losses import step_divergence as step_divergence
from genjax.diffusion.discrete.processes import Bump as Bump
from genjax.diffusion.discrete.processes import Cosine as Cosine
from genjax.diffusion.discrete.processes import DiscreteProcess as DiscreteProcess
from genjax.diffusion.discrete.processes import Geometric as Geometric
from genjax.diffusion.discrete.processes import Linear as Linear
from genjax.diffusion.discrete.processes import Masked as Masked
from genjax.diffusion.discrete.processes import Path as Path
from genjax.diffusion.discrete.processes import Polynomial as Polynomial
from genjax.diffusion.discrete.processes import Uniform as Uniform
from genjax.diffusion.discrete.processes import score_entropy as score_entropy
from genjax.diffusion.discrete.samplers import ancestral as ancestral
from genjax.diffusion.discrete.samplers import blockwise as blockwise
from genjax.diffusion.discrete.samplers import confident as confident
from genjax.diffusion.discrete.samplers import entropy_bounded as entropy_bounded
from genjax.diffusion.discrete.samplers import first_hitting as first_hitting
from genjax.diffusion.discrete.samplers import flow as flow
from genjax.diffusion.discrete.samplers import num_evaluations as num_evaluations
from genjax.diffusion.discrete.samplers import remasking as remasking
from genjax.diffusion.discrete.samplers import tau_leaping as tau_leaping
from genjax.diffusion.discrete.samplers.decoding import in_total as in_total
from genjax.diffusion.discrete.samplers.decoding import per_step as per_step
from genjax.diffusion.discrete.samplers.remasking import capped as capped
from genjax.diffusion.discrete.samplers.remasking import rescaled as rescaled
from genjax.diffusion.discrete.targets import clean as clean
from genjax.diffusion.discrete.targets import leave_one_out as leave_one_out
from genjax.diffusion.discrete.targets import predict as predict
from genjax.diffusion.discrete.targets import score as score
