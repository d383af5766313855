"""Samplers: from noise to data along a grid of times.

Each is called as `sampler(denoiser, process, noise, times, keys=…)`; see `steps.sampler`.
"""

from genjax.diffusion.discrete.samplers.ancestral import ancestral as ancestral
from genjax.diffusion.discrete.samplers.ancestral import flow as flow
from genjax.diffusion.discrete.samplers.ancestral import tau_leaping as tau_leaping
from genjax.diffusion.discrete.samplers.blocks import blockwise as blockwise
from genjax.diffusion.discrete.samplers.decoding import confident as confident
from genjax.diffusion.discrete.samplers.decoding import entropy_bounded as entropy_bounded
from genjax.diffusion.discrete.samplers.first_hitting import first_hitting as first_hitting
from genjax.diffusion.discrete.samplers.remasking import remasking as remasking
from genjax.diffusion.discrete.samplers.steps import num_evaluations as num_evaluations
