"""The algebra of diffusion: processes, targets, times, losses, guidance and samplers.

`x` is data, `z` noise, t = 0 clean and t = 1 noise, x_t = alpha(t)·x + sigma(t)·z.
"""

from genjax.diffusion import optimal as optimal
from genjax.diffusion.grids import uniform_grid as uniform_grid
from genjax.diffusion.guidance import adaptive_projected as adaptive_projected
from genjax.diffusion.guidance import autoguide as autoguide
from genjax.diffusion.guidance import classifier_free as classifier_free
from genjax.diffusion.guidance import classifier_guide as classifier_guide
from genjax.diffusion.guidance import compose as compose
from genjax.diffusion.guidance import drop_conditioning as drop_conditioning
from genjax.diffusion.guidance import dynamic_threshold as dynamic_threshold
from genjax.diffusion.guidance import extrapolate as extrapolate
from genjax.diffusion.guidance import guide as guide
from genjax.diffusion.guidance import interval as interval
from genjax.diffusion.guidance import on as on
from genjax.diffusion.guidance import plus_plus as plus_plus
from genjax.diffusion.guidance import rescaled as rescaled
from genjax.diffusion.guidance import scale_of_weight as scale_of_weight
from genjax.diffusion.guidance import static_threshold as static_threshold
from genjax.diffusion.guidance import with_clean as with_clean
from genjax.diffusion.guidance import zero_init as zero_init
from genjax.diffusion.guidance import zero_star as zero_star
from genjax.diffusion.losses import simple_loss as simple_loss
from genjax.diffusion.losses import sums_by_time as sums_by_time
from genjax.diffusion.processes import EDM as EDM
from genjax.diffusion.processes import Process as Process
from genjax.diffusion.processes import RectifiedFlow as RectifiedFlow
from genjax.diffusion.processes import VarianceExploding as VarianceExploding
from genjax.diffusion.processes import VariancePreservingCosine as VariancePreservingCosine
from genjax.diffusion.processes import sample_keys as sample_keys
from genjax.diffusion.processes import shift_time as shift_time
from genjax.diffusion.processes import to_domain as to_domain
from genjax.diffusion.samplers import ddim as ddim
from genjax.diffusion.samplers import euler as euler
from genjax.diffusion.samplers.tables import Table as Table
from genjax.diffusion.samplers.tables import run as run
from genjax.diffusion.samplers.tables import sampler as sampler
from genjax.diffusion.targets import Prediction as Prediction
from genjax.diffusion.targets import clean as clean
from genjax.diffusion.targets import noise as noise
from genjax.diffusion.targets import predict as predict
from genjax.diffusion.targets import recover as recover
from genjax.diffusion.targets import velocity as velocity
from genjax.diffusion.times import independent as independent
from genjax.diffusion.times import log_normal_sigma as log_normal_sigma
from genjax.diffusion.times import logit_normal as logit_normal
from genjax.diffusion.times import shifted as shifted
from genjax.diffusion.times import uniform as uniform
