"""Whether a network that is guided has learned the null condition, which guidance compares with."""

from typing import Any

from genjax.training.workdir import read_record


def check_null_condition(config: Any, task: Any, init_from: str | None) -> None:
    """Check that a network learns the null condition if its samples, or its loss, are guided.

    A network learns it from the examples whose condition is dropped. Weights that training starts
    from, or adapts, have learned it before.

    Args:
        task: the `genjax.training.task.GenerativeTask` of the config.
        init_from: what training starts from; None for random weights.

    Raises:
        ValueError: training drops no condition, and guidance reads the null condition.
    """
    method, teacher = getattr(task, "method", None), getattr(task, "teacher", None)
    if method:
        guided, given = method.is_guided, "config.method guides"
    else:
        scale = config.sampling.get("guidance_scale", 1.0)
        scales = scale.values() if hasattr(scale, "values") else [scale]
        guided, given = any(each != 1 for each in scales), f"the guidance scale is {scale}"
    whose = "config"
    if guided and teacher:
        run, whose = teacher.run, f"the config of the teacher {teacher.folder}"
        config, task, init_from = run.config, run.task, read_record(run.folder).get("init_from")
    pretrained = init_from or getattr(task, "adapters", None)
    if not guided or pretrained or getattr(task.condition, "is_empty", False):
        return
    if config.get("conditioning_dropout") == 0:
        without = (
            "take a method and options without guidance"
            if method
            else "set config.sampling.guidance_scale to 1"
        )
        raise ValueError(
            f"{given}, and {whose} has conditioning_dropout=0, so the network never learned "
            "the null condition that guidance compares with: train that network with "
            f"conditioning_dropout=0.1, or {without}"
        )
