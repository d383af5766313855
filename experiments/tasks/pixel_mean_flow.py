"""Pixel mean flow: a network that predicts clean pixels, and a perceptual term.

Lu et al. 2026, pMF. The method is improved mean flow of the average velocity (x_t − x̂)/t.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from experiments.tasks.distillation import Distillation
from experiments.tasks.methods.guided_mean_flow import GuidedMeanFlow
from experiments.tasks.methods.student import Student
from genjax.diffusion import targets
from genjax.distillation.pixel_mean_flow import average_velocity, perceptual_loss, random_crops
from genjax.metrics.lpips import LPIPS
from genjax.pretrained.lpips import load_lpips


@dataclass(frozen=True)
class PixelStudent(Student):
    """A student with a distance between images.

    Attributes:
        distance: LPIPS `(generated, real) -> [batch]`.
    """

    distance: Callable


@dataclass(frozen=True, kw_only=True)
class PixelMeanFlow(GuidedMeanFlow):
    """`GuidedMeanFlow` of a network that predicts images, plus `perceptual_loss`.

    LPIPS compares random crops, and has the adaptive weight of mean flows. The paper's second
    perceptual term, of ConvNeXt's features, is left out.

    Difference from the released code: an example with s = t has the later of two times, as in
    `GuidedMeanFlow`, and there the time of one draw.

    Attributes:
        perceptual: weight of LPIPS; 0 leaves it out, as images below 16 pixels a side have to.
        latest: time from which on the perceptual term is 0.
        crop: side of the crops, in pixels.
    """

    perceptual: float = 0.4
    latest: float = 0.8
    crop: int = 224
    smallest: ClassVar[float] = 0.05
    needs_target = staticmethod(targets.clean)

    def velocities(self, student: Student) -> Callable:
        clean = super().velocities(student)

        def velocities(x, t, s, *conditioning):
            velocity = lambda image: average_velocity(lambda *_: image, self.smallest)(x, t, s)
            return tuple(velocity(image) for image in clean(x, t, s, *conditioning))

        return velocities

    def extra(self, key: Key[Array, ""], student: PixelStudent, x: Array) -> Callable | None:
        if not self.perceptual:
            return None
        crops = lambda key, images: random_crops(key, images, self.crop)
        distance = lambda generated, real: student.distance(
            crops(key, generated), crops(jax.random.clone(key), real)
        )

        def extra(x_t, t, u):
            distances = perceptual_loss(distance, x, x_t, t, u, self.latest)
            weights = jax.lax.stop_gradient(distances + 0.01) ** -self.power
            return self.perceptual * weights * distances

        return extra


@dataclass(frozen=True)
class PixelDistillation(Distillation):
    """A student of `PixelMeanFlow`, with the frozen network of its perceptual distance."""

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config.

        Raises:
            ValueError: as of `Distillation.fields`; or the images are too small for LPIPS.
        """
        fields = super().fields(config)
        smallest = min(fields["space"].shape[:2])
        if fields["method"].perceptual and smallest < 16:
            raise ValueError(
                f"images have a side of {smallest} pixels, and LPIPS needs 16: set "
                "config.method.perceptual to 0, or take larger images"
            )
        return fields

    def frozen(self) -> tuple:
        return self._with(super().frozen(), lambda: load_lpips()[1])

    def abstract_frozen(self) -> tuple:
        images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        shapes = lambda: jax.eval_shape(LPIPS().init, jax.random.key(0), images, images)
        return self._with(super().abstract_frozen(), shapes)

    def _with(self, others: tuple, load: Callable[[], PyTree]) -> tuple:
        """Return the frozen trees with those of LPIPS, if it has a weight."""
        if not self.method.perceptual:
            return others
        (others,) = others or ({},)
        return (others | {"perceptual": load()},)

    def _student(self, params, batch, key, state, frozen):
        student, x, key = super()._student(params, batch, key, state, frozen)
        variables = frozen["perceptual"] if self.method.perceptual else None
        distance = functools.partial(LPIPS().apply, variables)
        return PixelStudent(**vars(student), distance=distance), x, key
