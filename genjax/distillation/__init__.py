"""Distillation and few-step models: flow maps, their samplers, and the losses that train them.

A *flow map* `X(x_t, t, s, *conditioning) -> x_s` follows the probability-flow ODE from time t to
time s (`flow_maps`). Most methods are losses on a flow map. The others match distributions.
`policies` turns a network that predicts the data along a whole segment into a flow map (pi-Flow).

| file | teacher | inputs | derivative |
|---|---|---|---|
| `straightening` | a flow, for pairs | t | none |
| `progressive` | a denoiser | t | none |
| `guidance` | a guided denoiser | t, scale | none |
| `consistency` | a denoiser, or none | t, or t and s | none |
| `continuous_consistency` | a velocity, or none | t | along the trajectory |
| `regularized_consistency` | a velocity | t | along the trajectory |
| `shortcut` | none | t, s | none |
| `mean_flow`, `pixel_mean_flow` | none | t, s | along the trajectory |
| `flow_map_matching` | a velocity, or its own | t, s | in s, along the trajectory, or none |
| `distribution_matching`, `adversarial` | a denoiser | t | none |
| `drifting` | features | nothing | none |

The order of arguments is that of `genjax.diffusion`: the key; student and teacher; data and
conditioning; options by name. Losses return one value per example, and the times that were drawn.
"""

from genjax.distillation import adversarial as adversarial
from genjax.distillation import consistency as consistency
from genjax.distillation import continuous_consistency as continuous_consistency
from genjax.distillation import distances as distances
from genjax.distillation import distribution_matching as distribution_matching
from genjax.distillation import drifting as drifting
from genjax.distillation import flow_map_matching as flow_map_matching
from genjax.distillation import flow_maps as flow_maps
from genjax.distillation import guidance as guidance
from genjax.distillation import mean_flow as mean_flow
from genjax.distillation import pairs as pairs
from genjax.distillation import pixel_mean_flow as pixel_mean_flow
from genjax.distillation import policies as policies
from genjax.distillation import progressive as progressive
from genjax.distillation import regularized_consistency as regularized_consistency
from genjax.distillation import shortcut as shortcut
from genjax.distillation import straightening as straightening
from genjax.distillation.consistency import consistency_loss as consistency_loss
from genjax.distillation.continuous_consistency import (
    continuous_consistency_loss as continuous_consistency_loss,
)
from genjax.distillation.distribution_matching import (
    distribution_matching_loss as distribution_matching_loss,
)
from genjax.distillation.distribution_matching import fake_loss as fake_loss
from genjax.distillation.drifting import drifting_loss as drifting_loss
from genjax.distillation.flow_map_matching import eulerian_loss as eulerian_loss
from genjax.distillation.flow_map_matching import lagrangian_loss as lagrangian_loss
from genjax.distillation.flow_map_matching import semigroup_loss as semigroup_loss
from genjax.distillation.guidance import guidance_loss as guidance_loss
from genjax.distillation.guidance import imitation_loss as imitation_loss
from genjax.distillation.mean_flow import guided_mean_flow_loss as guided_mean_flow_loss
from genjax.distillation.mean_flow import improved_mean_flow_loss as improved_mean_flow_loss
from genjax.distillation.mean_flow import mean_flow_loss as mean_flow_loss
from genjax.distillation.pixel_mean_flow import perceptual_loss as perceptual_loss
from genjax.distillation.progressive import (
    progressive_distillation_loss as progressive_distillation_loss,
)
from genjax.distillation.shortcut import shortcut_loss as shortcut_loss
from genjax.distillation.straightening import distilled_reflow_loss as distilled_reflow_loss
