"""Autoregression: sequences of tokens, each drawn given those before it.

Everything takes arrays and callables. The networks are in `genjax.models`, quantizers in
`genjax.nn`.

| file | what it has |
|---|---|
| `decoding` | one token after another, in the order of the sequence |
| `masked` | several masked tokens at once: the most confident ones |
| `mar` | several continuous tokens at once, in a random order |
| `scales` | a map of tokens at once, from coarse to fine |
| `pixels` | one sub-pixel of a picture after another; the first ones may be given |
| `likelihoods` | from a network's outputs to the distribution of a pixel's levels |
| `orders` | orders of a picture's sub-pixels |
| `logits` | from logits to tokens: guidance, temperature, top-k, top-p, min-p |

The order of arguments is that of `genjax.diffusion`: keys; callables; data; options by name.
"""

from genjax.autoregression import orders as orders
from genjax.autoregression.decoding import decode as decode
from genjax.autoregression.likelihoods import PixelLikelihood as PixelLikelihood
from genjax.autoregression.likelihoods import categorical as categorical
from genjax.autoregression.likelihoods import mixture_of_logistics as mixture_of_logistics
from genjax.autoregression.logits import check_sampling as check_sampling
from genjax.autoregression.logits import filtered as filtered
from genjax.autoregression.logits import guide as guide
from genjax.autoregression.logits import guided as guided
from genjax.autoregression.logits import keep_min_p as keep_min_p
from genjax.autoregression.logits import keep_top_k as keep_top_k
from genjax.autoregression.logits import keep_top_p as keep_top_p
from genjax.autoregression.logits import linear_guidance_scale as linear_guidance_scale
from genjax.autoregression.logits import pair as pair
from genjax.autoregression.logits import sample as sample
from genjax.autoregression.mar import mar_loss as mar_loss
from genjax.autoregression.mar import mar_sample as mar_sample
from genjax.autoregression.masked import arccos_counts as arccos_counts
from genjax.autoregression.masked import choice_temperatures as choice_temperatures
from genjax.autoregression.masked import guided_predict as guided_predict
from genjax.autoregression.masked import masked_by_order as masked_by_order
from genjax.autoregression.masked import masked_counts as masked_counts
from genjax.autoregression.masked import masked_loss as masked_loss
from genjax.autoregression.masked import maskgit as maskgit
from genjax.autoregression.masked import random_masks as random_masks
from genjax.autoregression.masked import random_orders as random_orders
from genjax.autoregression.masked import reveal_in_order as reveal_in_order
from genjax.autoregression.pixels import read as read
from genjax.autoregression.pixels import sample_pixels as sample_pixels
from genjax.autoregression.scales import decode_scales as decode_scales
from genjax.autoregression.scales import linear_guidance as linear_guidance
