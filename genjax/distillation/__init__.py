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
