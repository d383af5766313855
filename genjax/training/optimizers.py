"""Optimizers: a rule with warm-up, a schedule, clipping and a weight-decay mask."""

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from genjax.devices.mesh import variable_path


def kernels_only(params: Any) -> Any:
    """Mark kernels, and the factors of adapted ones: biases, norms and embeddings do not decay."""

    def of_kernel(path, _):
        names = variable_path(path).split("/")
        # An adapter is "…/kernel/down" and "…/kernel/up", and an LSTM has an "…_hidden_kernel".
        return any(name == "kernel" or name.endswith("_kernel") for name in names[-2:])

    return jax.tree.map_with_path(of_kernel, params)


# Kernels of embeddings, modulation and a network's first and last layers. The modulation of several
# streams is named after what it modulates, as `video_exchange`. Residual blocks also have a
# `conv_in` and a `conv_out`, which are hidden.
NOT_HIDDEN = (
    "embedding|modulation|_exchange(_gate)?/|_time/dense/"
    "|head/|logits/|to_image/|(to|from)_rgb/|quant_conv/|(^|coder/)"
    "(project|patch_projection|map_in|(conv|convolution|dense)_in"
    "|(conv|convolution|average|velocity)_out)/"
)


def hidden_matrices(params: Any) -> Any:
    """Mark the kernels that Muon orthogonalizes: those outside `NOT_HIDDEN`.

    The names decide. First and last layers without a name of their own, as `conv_0` of DCGAN, count
    as hidden.
    """

    def is_hidden(path, a):
        name = variable_path(path)
        return name.endswith("kernel") and a.ndim > 1 and not re.search(NOT_HIDDEN, name)

    return jax.tree.map_with_path(is_hidden, params)


def muon(
    learning_rate: optax.Schedule,
    *,
    weight_decay: float,
    mask: Callable,
    beta: float = 0.95,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Return Muon for `hidden_matrices`, and AdamW for all else.

    Muon is momentum orthogonalized by Newton–Schulz (Jordan et al. 2024, "Muon: an optimizer for
    hidden layers"). The last two dimensions of a kernel are a matrix `[in out]`, orthogonalized by
    itself; those before count matrices: scanned layers, or a convolution's taps. An update is
    scaled by 0.2·√max(in, out), which gives it the root mean square of an AdamW update. So both
    share learning rate and weight decay (Liu et al. 2025, "Muon is scalable for LLM training",
    equation 4).

    Differences from the authors' repositories: Jordan et al. view a convolution's taps and inputs
    as one side of one matrix, and iterate in bfloat16. Liu et al. take b2 = 0.95.

    Args:
        beta: decay of Muon's momentum. It is Nesterov's, corrected for its start at 0 as in Nadam
            (Dozat 2016).
        b1, b2, eps: of AdamW.
    """
    last_two = optax.contrib.MuonDimensionNumbers(-2, -1)
    matrices = lambda updates: jax.tree.map(lambda _: last_two, updates)
    rms_of_adam = optax.stateless_with_tree_map(lambda u, _: 0.2 * max(u.shape[-2:]) ** 0.5 * u)
    orthogonalize = optax.contrib.scale_by_muon(beta=beta, weight_dimension_numbers=matrices)
    hidden, others = optax.chain(orthogonalize, rms_of_adam), optax.scale_by_adam(b1, b2, eps)
    return optax.chain(
        optax.partition({True: hidden, False: others}, hidden_matrices),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def schedule_free_adamw(
    learning_rate: optax.Schedule,
    *,
    weight_decay: float,
    mask: Callable,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Return AdamW with an average of the parameters in place of a schedule.

    The source is Defazio et al. 2024 ("The road less scheduled", algorithm 1). The parameters
    trained are y, where gradients are taken; `evaluation_params` gives x, to evaluate and sample.
    Weights of the average are squares of the learning rate, without the algorithm's √(1 − β₂^t):
    Adam's bias correction is applied to its second moment instead.

    Args:
        learning_rate: warm-up, then constant; the first update takes `learning_rate(1)`.
        b1: β, the share of x in y, above 0.
    """
    shifted = lambda count: learning_rate(count + 1)
    adam = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    base = optax.chain(
        adam, optax.add_decayed_weights(weight_decay, mask), optax.scale_by_learning_rate(shifted)
    )
    return optax.contrib.schedule_free(base, learning_rate, b1)


def evaluation_params(optimizer_state: PyTree, params: PyTree) -> PyTree:
    """Return the parameters to evaluate and sample from.

    These are the average x of a schedule-free optimizer, and `params` of any other.
    """
    is_free = lambda part: isinstance(part, optax.contrib.ScheduleFreeState)
    free = [part for part in jax.tree.leaves(optimizer_state, is_leaf=is_free) if is_free(part)]
    return optax.contrib.schedule_free_eval_params(free[0], params) if free else params


def rules() -> dict[str, Callable]:
    """Return the optimizers by name: this module's, and optax's with a masked weight decay."""
    given = {"learning_rate", "weight_decay", "mask"}
    takes = lambda f: given <= inspect.signature(f).parameters.keys()
    of_optax = {name: f for name, f in vars(optax).items() if inspect.isfunction(f) and takes(f)}
    return {**of_optax, "muon": muon, "schedule_free_adamw": schedule_free_adamw}


def steps_of(length: int | float, num_steps: int) -> int:
    """Return a length in steps, given in steps or, below 1, as a fraction of `num_steps`."""
    return round(length * num_steps) if length < 1 else round(length)


def _find_rule(name: str, options: dict[str, Any], field: str) -> Callable:
    """Return the optimizer called `name`.

    Raises:
        ValueError: there is none, or it does not take the options.
    """
    if name not in rules():
        nearest = difflib.get_close_matches(name, rules(), n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"{field}.name is {name!r}; {hint}there are {', '.join(sorted(rules()))}")
    rule = rules()[name]
    if unknown := options.keys() - (takes := inspect.signature(rule).parameters.keys()):
        own = inspect.signature(make_optimizer).parameters
        nearest = difflib.get_close_matches(min(unknown), [*own, *takes], n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(
            f"{field} has {', '.join(sorted(unknown))}, which {name} does not take; {hint}"
            f"it takes {', '.join(takes)}"
        )
    return rule


def make_schedule(
    name: str,
    learning_rate: float,
    num_steps: int,
    warmup: int | float,
    decay: int | float | None,
    end_learning_rate: float,
    *,
    hold: int | float = 0,
    field: str = "config.optimizer",
) -> optax.Schedule:
    """Return the learning rate by step, as `make_optimizer` describes it.

    Args:
        field: what errors call the optimizer's part of the config.

    Raises:
        ValueError: no such schedule, or the warm-up or the hold does not fit.
    """
    warmup_steps = steps_of(warmup, num_steps)
    decay_steps = num_steps if decay is None else steps_of(decay, num_steps)
    if not 0 <= warmup_steps < min(num_steps, decay_steps):
        raise ValueError(
            f"{field}.warmup is {warmup_steps} steps, and must be at least 0 and fewer than "
            f"config.num_steps={num_steps} and decay={decay_steps}: set --{field}.warmup=0.1, "
            "a tenth of the run, or more steps"
        )
    if hold and (
        name != "linear" or not 0 < steps_of(hold, num_steps) < decay_steps - warmup_steps
    ):
        raise ValueError(
            f"{field}.hold={hold} is of the schedule 'linear', and must end before decay="
            f"{decay_steps}; the schedule is {name!r} and the warm-up {warmup_steps} steps"
        )
    if name == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup_steps, decay_steps, end_learning_rate
        )
    if name == "linear":
        held = steps_of(hold, num_steps)
        rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        steps = decay_steps - warmup_steps - held
        fall = optax.linear_schedule(learning_rate, end_learning_rate, steps, transition_begin=held)
        return optax.join_schedules([rise, fall], [warmup_steps])
    if name != "constant":
        raise ValueError(f"{field}.schedule is {name!r}; there are cosine, linear, constant")
    if warmup_steps:
        return optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.constant_schedule(learning_rate)  # a linear schedule of no steps would stay at 0


def make_optimizer(
    *,
    name: str,
    learning_rate: float,
    num_steps: int,
    schedule: str = "cosine",
    warmup: int | float = 0,
    hold: int | float = 0,
    decay: int | float | None = None,
    end_learning_rate: float = 0.0,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    field: str = "config.optimizer",
    **options: Any,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return an optimizer and its schedule.

    The optimizer is `<name>(schedule, weight_decay=…, mask=kernels_only, **options)`.

    The learning rate rises linearly over the warm-up. It then falls as a half cosine until `decay`,
    where it is `end_learning_rate` and stays. With the schedule "linear" it stays for `hold` and
    then falls linearly. With "constant" it does not fall.
    Gradients are first scaled down to a global norm of at most `clip_norm`. Weight decay is
    decoupled: learning rate · `weight_decay` · parameter is subtracted, of kernels (or the factors
    of their adapters) alone. `lamb` scales it with the rest of the update.

    Args:
        name: of `rules`: adamw, lion, muon, schedule_free_adamw and others.
        num_steps: of the run.
        warmup, hold, decay: in steps, or below 1 as a fraction of the run. A decay of None is the
            whole run.
        field: what errors call this part of the config.

    Raises:
        ValueError: no such optimizer, option or schedule; or the warm-up, the hold or the norm of
            clipping does not fit.
    """
    rule = _find_rule(name, options, field)
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(
            f"{field}.clip_norm is {clip_norm}, which would clip every gradient to nothing: take a "
            "positive norm, or None to clip none"
        )
    if rule is schedule_free_adamw and schedule != "constant":
        raise ValueError(
            f"{name} replaces the falling of the learning rate: set {field}.schedule to 'constant'"
        )
    rate = make_schedule(
        schedule, learning_rate, num_steps, warmup, decay, end_learning_rate, hold=hold, field=field
    )
    optimizer = rule(rate, weight_decay=weight_decay, mask=kernels_only, **options)
    if clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    return optimizer, rate
