"""Modalities sampled together, or one given another: sound and video in one tree.

Each modality has its own process and its own time (Bao et al. 2023, "One transformer fits all
distributions in multi-modal diffusion at scale", UniDiffuser). So one network knows the joint
distribution, the conditional distributions and the marginal distributions. In a conditional
distribution the given modality stays at the clean end. In a marginal distribution the other
modality is pure noise.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from genjax.diffusion.guidance import blend, check_conditioning, predict_jointly
from genjax.diffusion.losses import Weighting, at_counted_times, simple_loss
from genjax.diffusion.processes import Process, expand
from genjax.diffusion.targets import Prediction, Target
from genjax.diffusion.times import TimeDistribution, independent


class JointLoss(NamedTuple):
    """Losses of several modalities, trees like the data.

    Attributes:
        losses: 0 where a modality was given.
        t: the times.
        given: whether the modality was given, and so has no loss.
    """

    losses: PyTree[Float[Array, " batch"]]
    t: PyTree[Float[Array, " batch"]]
    given: PyTree[Bool[Array, " batch"]]


def _draw_roles(
    key: Key[Array, ""],
    x: dict[str, Float[Array, " batch ..."]],
    clean_share: float,
    noise_share: float,
    continued_share: float,
    known_part: float,
) -> tuple[
    dict[str, Bool[Array, " batch"]],
    dict[str, Bool[Array, " batch"]],
    dict[str, Bool[Array, "batch _"]],
]:
    """Draw whether each modality is given, whether it is noise, and which of its rows are known.

    Without a known part the last of the three is empty. Arguments and errors as of `joint_loss`.
    """
    if min(clean_share, noise_share) < 0 or clean_share + noise_share > 1:
        raise ValueError(
            f"clean_share is {clean_share:g} and noise_share {noise_share:g}, and an example has "
            "one or the other: take shares of 0 or more that are together at most 1"
        )
    if not 0 <= continued_share <= 1:
        raise ValueError(f"continued_share is {continued_share:g}; take a share from 0 to 1")
    if continued_share and not known_part:
        raise ValueError(
            f"continued_share is {continued_share:g} and known_part 0, so no rows would be known: "
            "give known_part, the share of the rows that are"
        )
    batch, names = jax.tree.leaves(x)[0].shape[0], list(x)
    which_key, share_key = jax.random.split(key)
    which = jax.random.randint(which_key, (batch,), 0, len(names))
    share = jax.random.uniform(share_key, (batch,))
    given = {n: (which == i) & (share < clean_share) for i, n in enumerate(names)}
    lost = {n: (which == i) & (share >= 1 - noise_share) for i, n in enumerate(names)}
    continued = jax.random.uniform(jax.random.fold_in(key, 2), (batch, 1)) < continued_share
    known = {
        n: continued & ~lost[n][:, None] & known_rows(known_part, a.shape[1])
        for n, a in x.items()
        if known_part
    }
    return given, lost, known


def _distribution_of_roles(
    distribution: TimeDistribution, lost: Array, given: Array, known: Array | None
) -> TimeDistribution:
    """Return the times: the noise end where `lost`, clean where `given` or `known`."""

    def of_roles(process, u):
        start, end = process.domain
        lost_there, clean = expand(lost, u), expand(given, u)
        # The rows of a clip share their time, except those that are known.
        t = jnp.where(lost_there, end, distribution(process, u if known is None else u[:, :1]))
        return jnp.where(clean if known is None else clean | known, start, t)

    return of_roles


def joint_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: dict[str, Float[Array, " batch ..."]],
    *conditioning,
    process: dict[str, Process],
    target: PyTree[Target],
    times: dict[str, TimeDistribution],
    variates: PyTree[Callable] = independent,
    weighting: PyTree[Weighting] | None = None,
    clean_share: float = 0.2,
    noise_share: float = 0.1,
    continued_share: float = 0.0,
    known_part: float = 0.0,
) -> JointLoss:
    """Compute `simple_loss` of modalities that draw their times independently.

    In some examples one modality has a fixed time. All modalities are equally likely. With the time
    of clean data, the example trains the others given this modality. With the time of noise, it
    trains the others without this modality. In some examples the first rows of all modalities are
    clean, which trains to continue a clip.

    Args:
        apply: the network, called with trees of inputs and of times `[batch]`, or of times
            `[batch rows]` if there is a known part.
        x: the modalities by name; `process` and `times` have the same names.
        variates: a function, with which every modality draws on its own, or one for each modality.
        clean_share: share of examples in which a modality is clean. It has no loss there.
        noise_share: share of examples in which a modality is pure noise.
        continued_share: share of examples whose first rows are clean. These rows have no loss.
        known_part: share of each modality's rows that are clean there (`known_rows`).

    Raises:
        ValueError: a share is no share, clean and noise are together more than all examples, or as
            of `known_rows`.
    """
    choice_key, key = jax.random.split(key)
    given, lost, known = _draw_roles(
        choice_key, x, clean_share, noise_share, continued_share, known_part
    )

    def counted(functions: PyTree[Callable] | None) -> dict[str, Callable | None]:
        each = jax.tree.broadcast(functions, x, is_leaf=lambda a: a is None)
        ignored = {name: given[name][:, None] | known[name] for name in known} or given
        return {name: each[name] and at_counted_times(each[name], ignored[name]) for name in x}

    roles = lambda name: (lost[name], given[name], known.get(name))
    distributions = {name: _distribution_of_roles(times[name], *roles(name)) for name in x}
    draws = jax.tree.broadcast(variates, x)
    options = dict(process=process, target=counted(target), weighting=counted(weighting))
    options |= dict(times=distributions, variates=draws, time_axes=2 if known else 1)
    losses, t = simple_loss(key, apply, x, *conditioning, **options)
    if known:
        mean = lambda loss, known: jnp.mean(loss, axis=1, where=~known)
        losses, t = jax.tree.map(mean, losses, known), jax.tree.map(lambda t: t[:, -1], t)
    return JointLoss(jax.tree.map(lambda a, given: jnp.where(given, 0, a), losses, given), t, given)


def known_rows(part: float, rows: int) -> Bool[np.ndarray, " rows"]:
    """Return which rows are known to a clip that continues: the first `part` of them.

    Raises:
        ValueError: they are no whole number, none or all.
    """
    count = round(part * rows)
    if not math.isclose(count, part * rows) or not 0 < count < rows:
        raise ValueError(
            f"the known part {part:g} of {rows} rows is {part * rows:g} rows: choose a part that "
            f"gives a whole number from 1 to {rows - 1}"
        )
    return np.arange(rows) < count


def windowed_grid(
    process: dict[str, Process],
    times: dict[str, Float[Array, " times"]],
    rows: dict[str, int],
    known_part: float,
    windows: int,
    *,
    start_known: bool,
) -> dict[str, Float[Array, "windows times rows"]]:
    """Return the grids of a long clip's windows, each of which continues the one before.

    Args:
        times: the grids of the modalities, as of `given_modalities_grid`.
        rows: of each modality in a window.
        known_part: of a window's rows, those that wait at the clean end (`known_rows`).
        start_known: whether the first window's first rows are known too.
    """

    def grids(name: str) -> Float[Array, "windows times rows"]:
        known = np.stack([known_rows(known_part, rows[name])] * windows)
        known[0] &= start_known
        return jnp.where(known[:, None], process[name].clean_end, times[name][None, :, None])

    return {name: grids(name) for name in times}


def given_modalities_grid(
    process: dict[str, Process], times: dict[str, Float[Array, " times"]], given: Sequence[str]
) -> dict[str, Float[Array, " times"]]:
    """Return the grids of modalities; given modalities wait at the clean end.

    Samplers keep given modalities as they are, bit by bit.
    """
    waiting = lambda name: jnp.full_like(times[name], process[name].clean_end)
    return {name: waiting(name) if name in given else times[name] for name in times}


def sequential_grid(
    process: dict[str, Process], times: dict[str, Float[Array, " times"]], first: Sequence[str]
) -> dict[str, Float[Array, " longer"]]:
    """Return grids that sample the first modalities before the others: p(x, y) = p(x)·p(y | x).

    While the first ones are sampled, the others wait as noise. Then the first ones wait as clean
    data. Samplers keep what waits as it is, bit by bit. n + 1 times become 2n + 1.
    """

    def grid(name: str) -> Float[Array, " longer"]:
        t = times[name]
        if name in first:
            return jnp.append(t, jnp.full_like(t[1:], process[name].clean_end))
        return jnp.append(jnp.full_like(t[1:], t[0]), t)

    return {name: grid(name) for name in times}


def guide_jointly(
    denoiser: Callable[..., Prediction],
    process: dict[str, Process],
    conditioning: PyTree,
    null: PyTree,
    guidance_scale: PyTree[float | Float[Array, ""]],
    modality_scale: PyTree[float | Float[Array, ""]] | None = None,
    noise: dict[str, Float[Array, " batch ..."]] | None = None,
) -> Callable[..., Prediction]:
    """Guide each modality on the condition c and on the other modalities o, in one network call:

        ŷ(c, o) + (s − 1)·(ŷ(c, o) − ŷ(∅, o)) + (w − 1)·(ŷ(c, o) − ŷ(c, ∅))

    These are the two parts of LTX-2's guidance (HaCohen et al. 2026). Absent modalities are pure
    noise, as in UniDiffuser (Bao et al. 2023, section 3.3). A learned variance is that of ŷ(c, o).

    Args:
        denoiser: `(x_t, t, conditioning) -> Prediction` of modalities by name.
        conditioning, null: as for `guide`.
        guidance_scale: s, where 1 is plain conditional and 0 unconditional sampling: a number, or
            one for each modality by name.
        modality_scale: w, a number or one for each modality by name; 1 is plain, and 0 takes no
            account of the other modalities. None leaves this part out, and the network is called on
            a smaller batch.
        noise: the absent modalities, like x_t. `prior` draws them, by other keys than the start's.
            Only this part needs them.

    Raises:
        ValueError: `null` does not broadcast against `conditioning`, there is not one conditioning
            per sample, or there is a modality scale and no noise.
    """
    check_conditioning(conditioning, null)
    if modality_scale is not None and noise is None:
        raise ValueError(
            "modality_scale compares with absent modalities, which are noise: give noise, such as "
            "diffusion.prior(keys, process, like)"
        )
    scales = [guidance_scale] if modality_scale is None else [guidance_scale, modality_scale]
    weights = [jax.tree.map(lambda scale: 1 - scale, each) for each in scales]

    def alone(name: str, x_t: dict, t: dict) -> tuple[dict, dict]:
        ends = {n: jnp.full_like(t[n], process[n].domain[1]) for n in t}
        return noise | {name: x_t[name]}, ends | {name: t[name]}

    def guided(x_t: dict, t: dict) -> Prediction:
        inputs = [(x_t, t, conditioning), (x_t, t, null)]
        if modality_scale is not None:
            inputs += [(*alone(name, x_t, t), conditioning) for name in x_t]
        call = lambda x_t, t, inputs: denoiser(*inputs)
        full, *without = predict_jointly(call, x_t, t, inputs)
        if modality_scale is not None:
            without[1:] = [_own_parts(dict(zip(x_t, without[1:], strict=True)))]
        answers = [lambda x_t, t, each=each: each for each in (full, *without)]
        return blend(answers, weights)(x_t, t)

    return guided


def _own_parts(alone: dict[str, Prediction]) -> Prediction:
    """Return the prediction of each modality by the answer of its name."""
    own = lambda half: {name: getattr(answer, half)[name] for name, answer in alone.items()}
    return Prediction(own("clean"), own("noise"))
