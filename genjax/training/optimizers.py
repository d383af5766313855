"""Optimizers: an optax rule with warm-up, cosine decay, clipping and a weight-decay mask."""

from typing import Any

import jax
import optax


def kernels_only(params: Any) -> Any:
    """True for the leaves named `kernel`: biases, norms and embeddings are not decayed."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(
    *,
    name: str,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    **options: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer `optax.<name>(schedule, weight_decay=…, mask=kernels_only, **options)`, and its schedule.

    The learning rate rises linearly over `warmup_steps` and falls as a half cosine to zero at `num_steps`.
    Gradients are first scaled down to a global norm of at most `clip_norm`.

    Raises:
        ValueError: optax has no such optimizer, or the warm-up is longer than the run.
    """
    rule = getattr(optax, name, None)
    if rule is None or name.startswith("_"):
        raise ValueError(
            f"config.optimizer.name is {name!r}, which optax does not have; it has adamw, lion, adafactor, … "
            "(any optax optimizer that takes weight_decay and mask)"
        )
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be at least 0 and below num_steps={num_steps}")
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, num_steps)
    optimizer = rule(schedule, weight_decay=weight_decay, mask=kernels_only, **options)
    if clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    return optimizer, schedule
