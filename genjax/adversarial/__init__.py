"""Generative adversarial networks: objectives, regularizers, augmentation, latents, inverses.

Everything takes logits, arrays and callables. The networks are in `genjax.models`.
"""

from genjax.adversarial import adaptive as adaptive
from genjax.adversarial import augmentation as augmentation
from genjax.adversarial import diagnostics as diagnostics
from genjax.adversarial import inverse as inverse
from genjax.adversarial import latents as latents
from genjax.adversarial import objectives as objectives
from genjax.adversarial import regularizers as regularizers
from genjax.adversarial.adaptive import ADA as ADA
from genjax.adversarial.augmentation import augment as augment
from genjax.adversarial.augmentation import color as color
from genjax.adversarial.augmentation import cutout as cutout
from genjax.adversarial.augmentation import translation as translation
from genjax.adversarial.blur import FadingBlur as FadingBlur
from genjax.adversarial.blur import blur as blur
from genjax.adversarial.diagnostics import alarms as alarms
from genjax.adversarial.features import feature_matching as feature_matching
from genjax.adversarial.inverse import EncoderLosses as EncoderLosses
from genjax.adversarial.inverse import encoder_losses as encoder_losses
from genjax.adversarial.inverse import joint_discriminator_loss as joint_discriminator_loss
from genjax.adversarial.inverse import joint_generator_loss as joint_generator_loss
from genjax.adversarial.latents import closed_form_directions as closed_form_directions
from genjax.adversarial.latents import invert as invert
from genjax.adversarial.latents import lerp as lerp
from genjax.adversarial.latents import mix_styles as mix_styles
from genjax.adversarial.latents import perceptual_path_length as perceptual_path_length
from genjax.adversarial.latents import principal_directions as principal_directions
from genjax.adversarial.latents import square_distance as square_distance
from genjax.adversarial.latents import walk as walk
from genjax.adversarial.objectives import Objective as Objective
from genjax.adversarial.objectives import generator_slope as generator_slope
from genjax.adversarial.objectives import hinge as hinge
from genjax.adversarial.objectives import least_squares as least_squares
from genjax.adversarial.objectives import non_saturating as non_saturating
from genjax.adversarial.objectives import relativistic as relativistic
from genjax.adversarial.objectives import saturating as saturating
from genjax.adversarial.objectives import value as value
from genjax.adversarial.objectives import wasserstein as wasserstein
from genjax.adversarial.regularizers import Anchors as Anchors
from genjax.adversarial.regularizers import gradient_penalty as gradient_penalty
from genjax.adversarial.regularizers import (
    interpolated_gradient_penalty as interpolated_gradient_penalty,
)
from genjax.adversarial.regularizers import lazy_penalty as lazy_penalty
from genjax.adversarial.regularizers import lecam as lecam
from genjax.adversarial.regularizers import orthogonality as orthogonality
from genjax.adversarial.regularizers import path_length as path_length
from genjax.adversarial.regularizers import update_anchors as update_anchors
