"""Pictures of a student's samples by the number of steps that make them, beside its teacher's."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from experiments.evaluation.context import Context, Model
from genjax.training.pictures import paired_grid


@dataclass(frozen=True)
class FewStepPictures:
    """Draw samples of the same labels and noise by few steps, and the teacher's below them.

    A column is one label and one noise. So a column shows what each step adds, and what the teacher
    would have made.

    Attributes:
        num_steps: of the student, a row each.
        count: columns; labels repeat where there are fewer.
    """

    context: Context
    num_steps: tuple[int, ...] = (1, 2, 4)
    count: int = 10
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, model: Model) -> dict[str, Any]:
        condition = self.context.condition
        labels = np.arange(self.count) % max(condition.num_rows, 1)
        rows = {_name(steps): model.sample(labels, num_steps=steps) for steps in self.num_steps}
        if sample_teacher := model.functions.get("sample_teacher"):
            images, steps = sample_teacher(labels, model.sampling.seed)
            rows[f"teacher, {_name(steps)}"] = images
        return {"few_steps": paired_grid(rows, self.count)}


def _name(steps: int) -> str:
    return f"{steps} step{'' if steps == 1 else 's'}"
