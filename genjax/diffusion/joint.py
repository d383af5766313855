"""Modalities sampled together, or one given another: sound and video in one tree.

Each modality has its own process and its own time (Bao et al. 2023, "One transformer fits all
distributions in multi-modal diffusion at scale", UniDiffuser). So one network knows the joint law,
the conditional laws, in which the given modality waits at the clean end, and the marginal laws, in
which the other modality is pure noise.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from genjax.diffusion.guidance import blend, check_conditioning, predict_jointly
from genjax.diffusion.losses import Weighting, simple_loss
from genjax.diffusion.processes import Process
from genjax.diffusion.targets import Prediction, Target
from genjax.diffusion.times import Law, independent


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


def joint_loss(
    key: Key[Array, ""],
    apply: Callable,
    x: dict[str, Float[Array, " batch ..."]],
    *conditioning,
    process: dict[str, Process],
    target: PyTree[Target],
    times: dict[str, Law],
    variates: Callable = independent,
    weighting: PyTree[Weighting] | None = None,
    clean_share: float = 0.2,
    noise_share: float = 0.1,
) -> JointLoss:
    """Compute `simple_loss` of modalities that draw their times independently.

    In some examples one modality, each as likely as another, has a fixed time: that of clean data,
    which trains the others given this one, or that of noise, which trains the others without it.

    Args:
        apply: the network, called with trees of inputs and of times `[batch]`.
        x: the modalities by name; `process` and `times` have the same names.
        clean_share: of the examples, those in which a modality is clean. It has no loss there.
        noise_share: of the examples, those in which a modality is pure noise.
    """
    choice_key, key = jax.random.split(key)
    batch, names = jax.tree.leaves(x)[0].shape[0], list(x)
    which_key, share_key = jax.random.split(choice_key)
    which = jax.random.randint(which_key, (batch,), 0, len(names))
    share = jax.random.uniform(share_key, (batch,))
    given = {n: (which == i) & (share < clean_share) for i, n in enumerate(names)}
    lost = {n: (which == i) & (share >= 1 - noise_share) for i, n in enumerate(names)}

    def law_of(name: str) -> Law:
        def law(process, u):
            start, end = process.domain
            t = jnp.where(lost[name], end, times[name](process, u))
            return jnp.where(given[name], start, t)

        return law

    laws, draws = {name: law_of(name) for name in x}, {name: variates for name in x}
    options = dict(process=process, target=target, weighting=weighting)
    losses, t = simple_loss(key, apply, x, *conditioning, times=laws, variates=draws, **options)
    return JointLoss(jax.tree.map(lambda a, given: jnp.where(given, 0, a), losses, given), t, given)


def given_modalities_grid(
    process: dict[str, Process], times: dict[str, Float[Array, " times"]], given: Sequence[str]
) -> dict[str, Float[Array, " times"]]:
    """Return the grids of modalities, of which those that are given wait at the clean end.

    Samplers keep them as they are, bit by bit.
    """
    waiting = lambda name: jnp.full_like(times[name], process[name].clean_end)
    return {name: waiting(name) if name in given else times[name] for name in times}


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
        modality_scale: w, likewise; 1 is plain, and 0 takes no account of the other modalities.
            None leaves this part out, and the network is called on a smaller batch.
        noise: what `prior` draws, like x_t, for the absent modalities; needed for this part alone.

    Raises:
        ValueError: `null` does not broadcast against `conditioning`, or there is not one
            conditioning per sample.
    """
    check_conditioning(conditioning, null)
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
