"""Kinds of parts: what each is called with, and where its names are looked up.

A config names a part by an object's name in one of the kind's places, or by a dotted path
(`genjax.parts.find`). Each kind's contract is a protocol of this module. The contract is checked
where the config is read, so a wrong part gives one clear error before anything is computed.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from genjax import parts
from genjax.training.task import Condition, Space


def part_fields(fields: Any, field: str) -> dict[str, Any]:
    """Return the fields of the part `config.<field>`; raise ValueError if it is none."""
    if not hasattr(fields, "keys") or not isinstance(fields.get("name") or "", str):
        raise ValueError(
            f"config.{field} is {fields!r}, and a part has a name and arguments: set "
            f"config.{field} = dict(name=…)"
        )
    return dict(fields)  # a ConfigDict is no Mapping


@dataclass(frozen=True)
class Kind:
    """A kind of part.

    Attributes:
        contract: a protocol. Its `__call__` says what the part is called with. The part must have
            the protocol's other members.
        places: packages and modules in which names are looked up.
        made: whether the named object makes the part, as a class or a function that returns it.
        maker: the method of the class that makes it, if it is not the class itself.
    """

    contract: type
    places: tuple[str, ...]
    made: bool = False
    maker: str | None = None

    def bind(self, fields: Mapping[str, Any], field: str, **given: Any) -> Any:
        """Return the part that `config.<field>` names, with the other entries as its arguments.

        Args:
            given: arguments that the program gives, which a config cannot set; a part that is made
                need not take them.

        Raises:
            ValueError: there is no name or no such part, it takes no such argument, or it breaks
                the contract.
        """
        fields = part_fields(fields, field)
        if not fields.get("name"):
            raise ValueError(
                f"config.{field} has {', '.join(fields) or 'nothing'} and no name of a part: set "
                f"--config.{field}.name"
            )
        called_with = tuple(given if self.made else _parameters(self.contract))
        function = parts.find(fields["name"], self.places, f"config.{field}.name", self.offers)
        if self.maker:
            if not hasattr(function, self.maker):
                raise ValueError(
                    f"config.{field}.name is {fields['name']!r}, which has no {self.maker} that "
                    f"makes a {self.contract.__name__}"
                )
            function = getattr(function, self.maker)
        if not callable(function):
            raise ValueError(
                f"config.{field}.name is {fields['name']!r}, which is {function!r} and neither a "
                f"function nor a class; {self._described()}"
            )
        bound = parts.bind_to(function, fields, self.places, f"config.{field}", called_with)
        if self.made:
            takes = inspect.signature(bound.func).parameters
            takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
            given = {name: value for name, value in given.items() if takes_any or name in takes}
            lacking = parts.required(bound) - given.keys()
            if lacking:
                values = " and ".join(f"config.{field}.{name}" for name in sorted(lacking))
                raise ValueError(
                    f"config.{field} names {fields['name']}, which cannot be made without "
                    f"{values}; {self._described()}"
                )
            try:
                bound = bound(**given)
            except ValueError as error:
                if "config." in str(error):  # a part of this part has said which field it is
                    raise
                raise ValueError(f"config.{field}: {error}") from error
        self.check(bound, fields["name"], field)
        return bound

    def find(self, name: str, field: str) -> Any:
        """Return the part that `config.<field>` is the name of; raise ValueError as `bind` does."""
        found = parts.find(name, self.places, f"config.{field}", self.offers)
        self.check(found, name, field)
        return found

    def check_flag(self, fields: Mapping[str, Any], flag: str) -> None:
        """Raise ValueError as `bind` does, in terms of a flag: "--sampler=NAME,option=1.5"."""
        found = parts.find(fields["name"], self.places, f"--{flag}", self.offers)
        called_with = tuple(_parameters(self.contract))
        parts.bind_to(found, fields, self.places, f"--{flag}", called_with)

    def offers(self, part: Any) -> bool:
        """Return whether an object is a choice of this kind, not a helper or a base class.

        A choice has the contract's members and takes the arguments of its `__call__`. A function
        that makes the part is a choice if its return annotation is one.
        """
        if self.made and inspect.isfunction(part):
            made = inspect.signature(part).return_annotation
            return inspect.isclass(made) and self._is_choice(made)
        is_base = "__call__" not in vars(self.contract) and inspect.isclass(part)
        is_base = is_base and part.__name__ == self.contract.__name__
        return not is_base and self._is_choice(part)

    def _is_choice(self, part: Any) -> bool:
        if not self._has_members(part) or "__call__" not in vars(self.contract):
            return self._has_members(part)
        called = vars(part).get("__call__") if inspect.isclass(part) else part
        return callable(called) and _is_called_alike(called, self.contract, inspect.isclass(part))

    def _has_members(self, part: Any) -> bool:
        annotated = getattr(part, "__annotations__", {}) if inspect.isclass(part) else {}
        return all(hasattr(part, each) or each in annotated for each in _members(self.contract))

    def check(self, part: Any, name: str, field: str) -> None:
        """Raise ValueError if a part cannot be called as the contract says, or lacks a member."""
        problem, members = "", [each for each in _members(self.contract) if not hasattr(part, each)]
        if members:
            problem = f"has no {' and no '.join(members)}"
        elif "__call__" in vars(self.contract):
            parameters = _parameters(self.contract).values()
            positional = [None for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
            named = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
            try:
                inspect.signature(part).bind(*positional, **named)
            except TypeError as error:
                problem = f"cannot be called so: {error}"
        if problem:
            raise ValueError(f"config.{field} names {name}, which {problem}; {self._described()}")

    def _described(self) -> str:
        name, text = self.contract.__name__, inspect.cleandoc(self.contract.__doc__)
        return f"{'an' if name[0] in 'AEIO' else 'a'} {name} is {text.splitlines()[0]}"


def _parameters(contract: type) -> dict[str, inspect.Parameter]:
    call = vars(contract).get("__call__")
    return dict(list(inspect.signature(call).parameters.items())[1:]) if call else {}


def _is_called_alike(function: Callable, contract: type, is_method: bool) -> bool:
    """Return whether a function takes the arguments of a contract's `__call__`, by their names.

    Networks have different names for the condition, so only a method's second name must agree.
    The first name of a function need not agree, unless it is the only one.
    """
    parameters = list(_parameters(contract).values())
    positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    named = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    takes = inspect.signature(function).parameters
    if not named <= takes.keys():
        return False
    if not is_method:
        first = min(1, len(positional) - 1)
        return positional[first:] == list(takes)[first : len(positional)]
    required = [each for each in takes.values() if each.default is each.empty]
    count = len([each for each in required if each.kind is each.POSITIONAL_OR_KEYWORD])
    return positional[1:2] == list(takes)[2 : 1 + len(positional)][:1] and count <= 1 + len(
        positional
    )


def _members(contract: type) -> list[str]:
    return [
        name
        for name in (*vars(contract), *vars(contract).get("__annotations__", {}))
        if name[0] != "_"
    ]


class DiffusionNetwork(Protocol):
    """`network(x_t, t, condition)`: a Flax module that returns an array of the shape of `x_t`.

    `t` has shape `[batch]`; `condition` is what `config.condition` gives: class labels `[batch]`,
    or encoded text. Two fields are optional: `divisor`, which the height and width of `x_t` must be
    multiples of, and `num_classes`, which is then set from `config.condition`. With a learned
    variance the network returns twice the channels. A network may have `adopted(params)`. It
    renames the parameters of another architecture, so that --init_from can start from that one.
    """

    def __call__(self, x_t, t, condition): ...


class Generator(Protocol):
    """`generator(z, labels, *, train)`: a Flax module from latents to images, with `latent_size`.

    `labels` is None without classes. A generator with styles also has `map` and `synthesize`. If it
    has `takes_transform`, and that is true, `synthesize` takes `transform`. A generator without
    styles may name the linear layer that takes z by `first_layer`.
    """

    latent_size: int

    def __call__(self, z, labels, *, train): ...


class Discriminator(Protocol):
    """`discriminator(images, labels, *, train)`: a Flax module that returns a logit for each image.

    `labels` is None without classes.
    """

    def __call__(self, images, labels, *, train): ...


class JointDiscriminator(Protocol):
    """`discriminator(images, z, labels, *, train)`: a Flax module that scores pairs (x, z).

    It returns scores `[batch terms]`. `labels` is None without classes.
    """

    def __call__(self, images, z, labels, *, train): ...


class Encoder(Protocol):
    """`encoder(images, condition, *, train)`: a Flax module from images to latents.

    `features` is set to the size of the generator's latents. `condition` are class labels, or None.
    """

    features: int

    def __call__(self, images, condition, *, train): ...


class PatchDiscriminator(Protocol):
    """`discriminator(x, *, train)`: a Flax module that returns a logit for each patch.

    A discriminator of several parts returns a list of logits, and the features of each part.
    """

    def __call__(self, images, *, train): ...


class AutoencoderNetwork(Protocol):
    """a Flax module with `encode(x)`, `decode(z)` and `factor`.

    `factor` is how many pixels of a side, or samples, one latent stands for.

    `encode` returns latents, or mean and log-variance of Gaussian ones. A network that quantizes
    also has `quantize`, and for tokens `quantizer` and `decode_indices`. A network of Gaussian
    latents may have `inner_losses(x, z)`, further terms of the loss by name.
    """

    factor: int
    encode: Callable
    decode: Callable


class VariationalNetwork(Protocol):
    """a Flax module with `encode(x) -> (mean, log_variance)`, `decode(z)` and `latent_size`."""

    latent_size: int
    encode: Callable
    decode: Callable


class PixelNetwork(Protocol):
    """`network(levels, labels)`: a Flax module over pictures of integer levels.

    It returns what the likelihood reads for each pixel, given earlier pixels. `prefill(labels)`
    and `step(cache, levels, position)` do so one sub-pixel at a time
    (`genjax.autoregression.pixels`). If `reads_given`, `prefill(labels, given)` reads the first
    sub-pixels in one pass.
    """

    num_levels: int
    reads_given: bool
    prefill: Callable
    step: Callable

    def __call__(self, levels, labels): ...


class ContinuousTokenNetwork(Protocol):
    """a Flax module with `states(tokens, mask, condition)` and `denoise(x_t, t, states)`.

    `genjax.autoregression.mar` calls them; `network(tokens, mask, condition, x_t, t)` calls both.
    """

    states: Callable
    denoise: Callable


class ScaleNetwork(Protocol):
    """`network(inputs, condition)`: a Flax module that returns logits of the tokens of all maps.

    `sides` are those of the maps. `start(condition)` and `step(state, inputs, scale)` do so for one
    map after another (`genjax.autoregression.scales`).
    """

    sides: tuple[int, ...]
    start: Callable
    step: Callable

    def __call__(self, inputs, condition): ...


class SequenceNetwork(Protocol):
    """`network(tokens, condition)`: a Flax module that returns the logits of all tokens.

    Those of a token depend on the tokens before it. `prefill(condition)` and
    `step(state, tokens, position)` read one token at a time (`genjax.autoregression.decoding`).
    `prefix`, `vocabulary` and `grid` are set from the config's prefix and space.
    """

    vocabulary: int
    grid: tuple[int, int]
    prefill: Callable
    step: Callable

    def __call__(self, tokens, condition): ...


class MaskedNetwork(Protocol):
    """`network(tokens, condition)`: a Flax module that returns the logits of all tokens.

    Any of the tokens may be `mask_token`. `prefix`, `vocabulary` and `grid` are set from the
    config's prefix and space.
    """

    vocabulary: int
    grid: tuple[int, int]
    mask_token: int

    def __call__(self, tokens, condition): ...


class Prefix(Protocol):
    """`prefix(condition, width, dtype, param_dtype)`: a Flax module that makes `length` states.

    It returns the states that stand before the tokens, and which of them are visible, or None.
    `num_classes` is set from `config.condition`.
    """

    length: int

    def __call__(self, condition, width, dtype, param_dtype): ...


class MaskSchedule(Protocol):
    """`schedule(share)`: the share of masked tokens after a share of the steps."""

    def __call__(self, share): ...


class PixelLikelihood(Protocol):
    """a distribution of a pixel's levels given a network's outputs.

    See `genjax.autoregression.PixelLikelihood`.
    """

    outputs: Callable
    log_probability: Callable
    logits: Callable


class Order(Protocol):
    """`order(shape)`: the places of a picture's sub-pixels in raster order, first to last."""

    def __call__(self, shape): ...


class Process(Protocol):
    """a pair `alpha(t)`, `sigma(t)` with its `domain` and `prior` (`genjax.diffusion.Process`)."""

    alpha: Callable
    sigma: Callable
    domain: tuple[float, float]
    prior: Callable


class Target(Protocol):
    """`target(process, t) -> (c, d)`: the network predicts c·x + d·z."""

    def __call__(self, process, t): ...


class Loss(Protocol):
    """`loss(key, apply, x, conditioning, *, process, target, times, variates, weighting)`.

    It returns losses and times.
    """

    def __call__(
        self, key, apply, x, conditioning, *, process, target, times, variates, weighting
    ): ...


class Weighting(Protocol):
    """`weighting(process, target, t)`: the weight of the loss at each time."""

    def __call__(self, process, target, t): ...


class TimeDistribution(Protocol):
    """`distribution(process, u)`: times to train on, increasing in the uniform variates u."""

    def __call__(self, process, u): ...


class Variates(Protocol):
    """`variates(key, shape)`: uniform variates in (0, 1)."""

    def __call__(self, key, shape): ...


class Sampler(Protocol):
    """`sampler(denoiser, process, noise, times, *, keys, trajectory)`.

    It returns samples, or with `trajectory` the states at all times.
    """

    def __call__(self, denoiser, process, noise, times, *, keys, trajectory): ...


class DiscreteTarget(Protocol):
    """`target(process, output, x_t, t)`: log p(x | x_t) of a network's output."""

    def __call__(self, process, output, x_t, t): ...


class DiscreteLoss(Protocol):
    """`loss(key, apply, x, conditioning, *, process, target, times, variates)`.

    It returns losses and times.
    """

    def __call__(self, key, apply, x, conditioning, *, process, target, times, variates): ...


class Method(Protocol):
    """`method(key, student, x)`: losses and times; its attributes say what it needs."""

    takes_end_time: bool
    takes_guidance: bool
    needs_teacher: bool | None
    needs_process: type | None
    needs_target: Callable | None
    reads_weighting: bool
    reads_times: bool
    forward_mode: bool
    needs_pairs: bool
    has_stages: bool
    flow_map: Callable

    def __call__(self, key, student, x): ...


class Features(Protocol):
    """a function `features(frozen, images)` to several arrays `[batch places dimension]`.

    `frozen()` loads what it takes, and `abstract_frozen()` returns that in shapes.
    """

    frozen: Callable
    abstract_frozen: Callable

    def __call__(self, frozen, images): ...


class Grid(Protocol):
    """`grid(process, num_steps)`: times from the noise end to the clean end."""

    def __call__(self, process, num_steps): ...


class Average(Protocol):
    """a rule with `shares(step)`: what the average and the new parameters count for."""

    shares: Callable


class Objective(Protocol):
    """a pair of losses `generator(real, fake)` and `discriminator(real, fake)` of logits."""

    generator: Callable
    discriminator: Callable


class Augmentation(Protocol):
    """`augmentation(key, image)`: a differentiable change of one image."""

    def __call__(self, key, image): ...


class AdaptiveAugmentation(Protocol):
    """a change `augmentation(key, image, probability)` of one image, whose probability it adapts.

    `init()` returns its state, a pytree with a `probability`. `update(state, step, r_t, images)`
    returns the state after a step.
    """

    init: Callable
    update: Callable

    def __call__(self, key, image, probability): ...


class Likelihood(Protocol):
    """a distribution p(x|z): `parameters` per channel, `log_probability(outputs, x)`, `mean`."""

    parameters: int
    log_probability: Callable
    mean: Callable


class Distance(Protocol):
    """`distance(x, y)`: a distance for each example of a batch."""

    def __call__(self, x, y): ...


class Quantizer(Protocol):
    """a Flax module with `num_codes`, `lookup(indices)` and `quantizer(z)`.

    `quantizer(z)` returns quantized latents and codes.
    """

    num_codes: int
    lookup: Callable


class TextEncoder(Protocol):
    """`text_encoder(length)`: a function from a list of prompts to their `genjax.nn.Text`.

    Each prompt has `length` tokens.
    """

    def __call__(self, length): ...


class TaskClass(Protocol):
    """a `genjax.training.task.GenerativeTask` with `from_config(config)`, which makes it."""

    from_config: Callable
    update: Callable
    generate: Callable


class Evaluator(Protocol):
    """`evaluator(model) -> {name: value}`: figures and pictures of a trained state.

    It is made with a `context`, what is known before training (`experiments.evaluation.context`),
    and its own arguments. `needs` names the functions of the task that it calls. It may have
    `varies`, the names of fields of `config.sampling` that it changes.
    """

    needs: tuple[str, ...]

    def __call__(self, model): ...


class Writer(Protocol):
    """a class with `open(folder, step, config)`, which returns an open stream."""

    open: Callable


DIFFUSION_NETWORK = Kind(
    DiffusionNetwork, ("genjax.models.transformers", "genjax.models.unets"), made=True
)
GENERATOR = Kind(Generator, ("genjax.models.gans",), made=True)
DISCRIMINATOR = Kind(Discriminator, ("genjax.models.gans",), made=True)
JOINT_DISCRIMINATOR = Kind(JointDiscriminator, ("genjax.models.gans",), made=True)
ENCODER = Kind(Encoder, ("genjax.models.gans",), made=True)
PATCH_DISCRIMINATOR = Kind(
    PatchDiscriminator,
    ("genjax.models.gans.patchgan", "genjax.models.gans.sound_discriminator"),
    made=True,
)
AUTOENCODER = Kind(AutoencoderNetwork, ("genjax.models.autoencoders",), made=True)
VARIATIONAL = Kind(VariationalNetwork, ("genjax.models.autoencoders",), made=True)
PIXEL_NETWORK = Kind(PixelNetwork, ("genjax.models.autoregressive",), made=True)
CONTINUOUS_TOKEN_NETWORK = Kind(
    ContinuousTokenNetwork, ("genjax.models.autoregressive",), made=True
)
SCALE_NETWORK = Kind(ScaleNetwork, ("genjax.models.autoregressive",), made=True)
SEQUENCE_NETWORK = Kind(SequenceNetwork, ("genjax.models.autoregressive",), made=True)
MASKED_NETWORK = Kind(MaskedNetwork, ("genjax.models.autoregressive",), made=True)
PREFIX = Kind(Prefix, ("genjax.models.autoregressive.prefixes",), made=True)
MASK_SCHEDULE = Kind(MaskSchedule, ("genjax.autoregression.masked",))
PIXEL_LIKELIHOOD = Kind(PixelLikelihood, ("genjax.autoregression.likelihoods",), made=True)
ORDER = Kind(Order, ("genjax.autoregression.orders",))
PROCESS = Kind(
    Process, ("genjax.diffusion.processes", "genjax.diffusion.preconditioning"), made=True
)
TARGET = Kind(Target, ("genjax.diffusion.targets",))
LOSS = Kind(
    Loss,
    ("genjax.diffusion.losses", "genjax.diffusion.given_frames", "genjax.diffusion.joint"),
)
WEIGHTING = Kind(Weighting, ("genjax.diffusion.weightings",))
TIME_DISTRIBUTION = Kind(TimeDistribution, ("genjax.diffusion.times",))
VARIATES = Kind(Variates, ("genjax.diffusion.times",))
SAMPLER = Kind(Sampler, ("genjax.diffusion.samplers",))
FLOW_MAP_SAMPLER = Kind(Sampler, ("genjax.distillation.flow_maps",))
DISCRETE_PROCESS = Kind(Process, ("genjax.diffusion.discrete.processes",), made=True)
DISCRETE_TARGET = Kind(DiscreteTarget, ("genjax.diffusion.discrete.targets",))
DISCRETE_LOSS = Kind(DiscreteLoss, ("genjax.diffusion.discrete.losses",))
DISCRETE_SAMPLER = Kind(Sampler, ("genjax.diffusion.discrete.samplers",))
METHOD = Kind(
    Method,
    (
        "experiments.tasks.methods",
        "experiments.tasks.drifting",
        "experiments.tasks.pixel_mean_flow",
        "experiments.tasks.features",  # of Drift
    ),
    made=True,
)
FEATURES = Kind(Features, ("experiments.tasks.features",), made=True)
GRID = Kind(Grid, ("genjax.diffusion.grids",))
AVERAGE = Kind(Average, ("genjax.training.ema",), made=True)
OBJECTIVE = Kind(Objective, ("genjax.adversarial.objectives",))
AUGMENTATION = Kind(Augmentation, ("genjax.adversarial.augmentation",))
ADAPTIVE_AUGMENTATION = Kind(AdaptiveAugmentation, ("genjax.adversarial.adaptive",), made=True)
LIKELIHOOD = Kind(Likelihood, ("genjax.autoencoding.likelihoods",), made=True)
DISTANCE = Kind(Distance, ("genjax.autoencoding.reconstruction", "genjax.autoencoding.spectral"))
QUANTIZER = Kind(Quantizer, ("genjax.nn.quantizers", "genjax.nn.multiscale"), made=True)
SPACE = Kind(
    Space,
    (
        "experiments.inputs.spaces",
        "experiments.inputs.standardized_pixels",
        "experiments.inputs.spectrograms",
        "experiments.inputs.sound_and_video",
    ),
    made=True,
    maker="from_data",
)
CONDITION = Kind(
    Condition,
    (
        "experiments.inputs.conditions",
        "experiments.inputs.clips",
        "experiments.inputs.played_clips",
        "experiments.inputs.sound_and_video",
    ),
    made=True,
)
TEXT_ENCODER = Kind(TextEncoder, ("experiments.inputs.text_encoders",))
TASK = Kind(TaskClass, ("experiments.tasks",))
EVALUATOR = Kind(Evaluator, ("experiments.evaluation",), made=True)
WRITER = Kind(Writer, ("genjax.training.writers",), made=True)

# The kinds whose names a field of a config takes.
KINDS_BY_FIELD = {
    "model": (
        DIFFUSION_NETWORK,
        AUTOENCODER,
        VARIATIONAL,
        PIXEL_NETWORK,
        CONTINUOUS_TOKEN_NETWORK,
        SCALE_NETWORK,
        SEQUENCE_NETWORK,
        MASKED_NETWORK,
        ENCODER,
    ),
    "model.generator": (GENERATOR,),
    "model.encoder": (ENCODER,),
    "model.discriminator": (DISCRIMINATOR, JOINT_DISCRIMINATOR),
    "space": (SPACE,),
    "condition": (CONDITION,),
    "prefix": (PREFIX,),
    "process": (PROCESS, DISCRETE_PROCESS),
    "target": (TARGET, DISCRETE_TARGET),
    "loss": (LOSS, DISCRETE_LOSS),
    "weighting": (WEIGHTING,),
    "times": (TIME_DISTRIBUTION,),
    "method": (METHOD,),
    "sampling.sampler": (SAMPLER, FLOW_MAP_SAMPLER, DISCRETE_SAMPLER),
    "sampling.grid": (GRID,),
    "likelihood": (LIKELIHOOD, PIXEL_LIKELIHOOD),
    "reconstruction": (DISTANCE,),
}


def parts_for_field(name: str, field: str) -> list[Any]:
    """Return the functions that make the parts that a name may mean in a field of `KINDS_BY_FIELD`.

    There is at most one of a kind. A wrong name gives none. It is refused where the part is made,
    by the kind that the task wants.
    """
    found = []
    for kind in KINDS_BY_FIELD[field]:
        with contextlib.suppress(ValueError):
            part = parts.find(name, kind.places, field)
            if made_by := getattr(part, kind.maker, None) if kind.maker else part:
                found.append(made_by)
    return found
