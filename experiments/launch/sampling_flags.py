"""The flags that `sample` and `evaluate` share: each changes how the run's config samples."""

from typing import Any

from absl import flags

from experiments.configuration import kinds
from experiments.configuration.options import interval, named
from genjax.diffusion import scale_of_weight

# Whether the run takes a denoiser's sampler, a flow map's or one of tokens is checked with its
# config.
ANY_SAMPLER = kinds.Kind(
    kinds.Sampler,
    kinds.SAMPLER.places + kinds.FLOW_MAP_SAMPLER.places + kinds.DISCRETE_SAMPLER.places,
)
SAMPLER = flags.DEFINE_string(
    "sampler",
    None,
    "A sampler of genjax.diffusion.samplers with its options: dpm_solver_pp_2m, or ddim,eta=0.5. "
    "For a few-step student it is one of genjax.distillation.flow_maps: consistency. "
    "For tokens it is one of genjax.diffusion.discrete.samplers: tau_leaping, or flow,eta=1.0.",
)
GRID = flags.DEFINE_string(
    "grid", None, "Its times, of genjax.diffusion.grids: uniform_grid,shift=3."
)
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps of the sampler.", lower_bound=1)
GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "1 is plain conditional sampling, 0 unconditional."
)
GUIDANCE_WEIGHT = flags.DEFINE_float(
    "guidance_weight",
    None,
    "w of (1 + w)·conditional − w·unconditional, in place of --guidance_scale, which is 1 + w.",
)
GUIDANCE_INTERVAL = flags.DEFINE_string(
    "guidance_interval",
    None,
    "LOW:HIGH, the times of guidance, as 0.2:0.8; the scale is 1 at all other times.",
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "Of tokens: 1 samples from the model, 0 takes the most likely ones."
)
TOP_K = flags.DEFINE_integer("top_k", None, "Draw tokens from so many of the most likely ones.")
TOP_P = flags.DEFINE_float(
    "top_p", None, "Draw tokens from the fewest that together have this probability."
)
MIN_P = flags.DEFINE_float(
    "min_p", None, "Exclude tokens less than this times as likely as the most likely one."
)
CHOICE_TEMPERATURE = flags.DEFINE_float(
    "choice_temperature",
    None,
    "Of MaskGIT: 0 keeps the most confident tokens of each step, more keeps others too.",
    lower_bound=0.0,
)
TRUNCATION = flags.DEFINE_float(
    "truncation",
    None,
    "Of a GAN: 1 samples as in training, less nearer to the mean.",
    lower_bound=0.0,
)
GIVEN = flags.DEFINE_list(
    "given",
    None,
    "Of video: frames that are kept from a held-out clip, 0 or 0,-1 for the first and the last. "
    "Frames are those of the network's space. Of sound and video: the one that is kept.",
)
FRAMES = flags.DEFINE_integer("frames", None, "Of video that is rolled out: its length.", 1)
HISTORY_SCALE = flags.DEFINE_float(
    "history_scale", None, "Of a causal network's video: guidance on the frames before."
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "One of the run's averages, params (of the last step), or posthoc_WIDTH, as posthoc_0.12.",
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Samples made at once at most, on all devices together; less takes less memory.",
    lower_bound=1,
)
SEED = flags.DEFINE_integer(
    "seed", None, "Another seed, other samples; a sample's index and seed fix it."
)


def number_or_name(text: str) -> int | str:
    """Return the number of a frame, or the name of a modality."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def chosen_scale() -> float | None:
    """Return the guidance scale that one of two flags sets; None if neither was given.

    Raises:
        ValueError: both were given.
    """
    scale, weight = GUIDANCE_SCALE.value, GUIDANCE_WEIGHT.value
    if weight is None:
        return scale
    if scale is not None:
        raise ValueError(
            f"--guidance_scale={scale} and --guidance_weight={weight} both set the guidance scale, "
            "which is 1 + the weight: leave out one of them"
        )
    return scale_of_weight(weight)


def sampling_changes() -> dict[str, Any]:
    """Return the values of the flags by their field of `config.sampling`; None if not given.

    Raises:
        ValueError: there is no such sampler or grid, or it has no such option; both flags of
            guidance were given; or the interval of guidance is not LOW:HIGH.
    """
    times = GUIDANCE_INTERVAL.value
    return dict(
        sampler=named(SAMPLER.value, "sampler", ANY_SAMPLER),
        grid=named(GRID.value, "grid", kinds.GRID),
        num_steps=NUM_STEPS.value,
        guidance_scale=chosen_scale(),
        guidance_interval=None if times is None else interval(times, "guidance_interval"),
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        min_p=MIN_P.value,
        choice_temperature=CHOICE_TEMPERATURE.value,
        truncation=TRUNCATION.value,
        given=None if GIVEN.value is None else tuple(map(number_or_name, GIVEN.value)),
        frames=FRAMES.value,
        history_scale=HISTORY_SCALE.value,
        weights=WEIGHTS.value,
        batch_size=BATCH_SIZE.value,
        seed=SEED.value,
    )
