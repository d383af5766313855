"""Pictures and measures of a GAN's latent space.

These are walks, mixed styles, directions, inversions and path lengths.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from PIL import Image

from experiments.evaluation.images import draw
from experiments.inputs.datasets import Data, labels_of
from experiments.tasks.programs import in_float32
from genjax import adversarial
from genjax.data import to_float, to_uint8
from genjax.devices.mesh import variable_path
from genjax.diffusion import slerp
from genjax.metrics import LPIPS
from genjax.pretrained.lpips import load_lpips
from genjax.training.pictures import label_rows, save_animation, save_picture
from genjax.training.workdir import device_name

STOPS, STEPS = 4, 12  # of a walk, which comes back to its first stop
STARTS = 256  # samples; an inversion starts at the nearest one
REACH = np.linspace(-3, 3, 7)  # along a direction, in deviations of the latents
PRINCIPAL_SAMPLES = 4096  # latents of which the principal directions are computed


@dataclass(frozen=True)
class Space:
    """Images as a function of latents of one kind.

    Attributes:
        images: `images(latents, labels)`.
        draw: `draw(key, labels)`, latents as in sampling.
    """

    name: str
    images: Any
    draw: Any
    interpolation: Any


def spaces(generator: nn.Module, variables: PyTree, truncation: float) -> list[Space]:
    """Return the spaces of a generator: Z, and for a generator with styles also W and W+.

    Nothing is drawn from W+: its latents start as latents of W.

    Args:
        truncation: as in sampling. It is ψ of a generator with styles; for others it scales z.
    """
    normal = lambda key, labels: jax.random.normal(key, (len(labels), generator.latent_size))
    apply = functools.partial(generator.apply, variables)
    if not hasattr(generator, "map"):
        return [Space("z", apply, lambda key, labels: truncation * normal(key, labels), slerp)]
    styles = lambda z, labels: apply(z, labels, truncation=truncation, method="map")
    drawn = lambda key, labels: styles(normal(key, labels), labels)
    synthesize = lambda w, labels: apply(w, method="synthesize")
    repeat = lambda w: jnp.repeat(w[:, :1], generator.num_styles, axis=1)
    return [
        Space("z", lambda z, labels: synthesize(styles(z, labels), labels), normal, slerp),
        Space(
            "w",
            lambda w, labels: synthesize(repeat(w), labels),
            lambda key, labels: drawn(key, labels)[:, :1],
            adversarial.lerp,
        ),
        Space("w_plus", synthesize, drawn, adversarial.lerp),
    ]


def walk(
    space: Space, key: Key[Array, ""], labels: Int[Array, " batch"]
) -> Float[Array, " frames batch *shape"]:
    """Return images along closed walks, one walk per label, `[frames batch …]`."""
    stops = jnp.stack([space.draw(each, labels) for each in jax.random.split(key, STOPS)])
    points = adversarial.walk(jnp.concatenate([stops, stops[:1]]), STEPS, space.interpolation)
    return jax.lax.map(lambda latents: space.images(latents, labels), points)


def mixing(
    space: Space, key: Key[Array, ""], labels: Int[Array, " batch"]
) -> Float[Array, " rows batch *shape"]:
    """Return images of mixed styles, `[rows batch …]`.

    The first row shows the images themselves. Each further row combines the coarse half of one
    image's styles with the fine styles of all images.
    """
    w = space.draw(key, labels)
    crossover = w.shape[1] // 2
    mixed = lambda coarse: adversarial.mix_styles(jnp.broadcast_to(coarse, w.shape), w, crossover)
    return jax.lax.map(
        lambda latents: space.images(latents, labels), jnp.stack([w, *map(mixed, w)])
    )


def closed_form(
    generator: nn.Module, variables: PyTree
) -> tuple[Float[Array, "directions features"], Float[Array, " directions"]]:
    """Return SeFa's directions and eigenvalues: in W of all styles, in Z of the first layer."""
    if not hasattr(generator, "map"):  # a class's embedding follows z in the layer's input
        kernel = variables["params"][generator.first_layer]["kernel"][: generator.latent_size]
        rest = generator.latent_size - len(kernel)  # of z, which BigGAN gives to later layers
        return adversarial.closed_form_directions([jnp.pad(kernel, ((0, rest), (0, 0)))])
    leaves = jax.tree.leaves_with_path(variables["params"])
    return adversarial.closed_form_directions(
        [leaf for path, leaf in leaves if variable_path(path).endswith("/affine/kernel")]
    )


def principal(
    space: Space, generator: nn.Module, variables: PyTree, key: Key[Array, ""], label: Array
) -> tuple[Float[Array, "directions features"], Float[Array, " directions"]]:
    """Return GANSpace's directions and variances: of w, or of z by the first layer's activations.

    Args:
        label: of the sampled latents, `[1]`.
    """
    labels = jnp.repeat(label, PRINCIPAL_SAMPLES)
    latents = space.draw(key, labels)
    if hasattr(generator, "map"):
        return adversarial.principal_directions(latents[:, 0])
    layer = generator.first_layer
    _, captured = generator.apply(
        variables,
        latents,
        labels,
        capture_intermediates=lambda module, _: module.name == layer,
        mutable=["intermediates"],
    )
    *_, activations = captured["intermediates"][layer]["__call__"]  # the last is the outermost call
    return adversarial.principal_directions(latents, activations)


def along_directions(
    space: Space,
    directions: Float[Array, "directions features"],
    key: Key[Array, ""],
    labels: Int[Array, " one"],
) -> Float[Array, "directions reach *shape"]:
    """Return images along directions of one latent, in deviations of all latents."""
    feature_axis = lambda latents: latents[:, 0] if latents.ndim == 3 else latents  # of any style
    drawn = feature_axis(space.draw(key, jnp.repeat(labels, STARTS)))
    deviations = jnp.std(drawn @ directions.T, axis=0)
    start = space.draw(key, labels)
    reach = REACH.reshape(-1, *[1] * (start.ndim - 1))
    along = lambda step: space.images(start + reach * step, jnp.repeat(labels, len(REACH)))
    return jax.lax.map(along, deviations[:, None] * directions)


def inversion(
    space: Space,
    key: Key[Array, ""],
    images: Float[Array, " batch *shape"],
    labels: Int[Array, " batch"],
    perceptual: PyTree = None,
    *,
    num_steps: int,
) -> tuple[Float[Array, " batch *shape"], dict[str, Float[Array, " batch"]]]:
    """Return the images found for given images, and their distances to these.

    Distances are mean squares of pixels: `_start` is of the nearest of `STARTS` samples, where the
    search starts, and "" is of the image found. `_lpips` is LPIPS of the image found, if LPIPS took
    part.

    Args:
        perceptual: LPIPS' variables, to minimize the sum of LPIPS and the mean square of pixels.
            Karras et al. 2020, "StyleGAN2", appendix D, minimize LPIPS alone.
    """
    several = jnp.repeat(labels, STARTS)
    latents = space.draw(key, several)
    candidates = jax.lax.map(
        lambda part: space.images(*part),
        jax.tree.map(lambda a: a.reshape(len(labels), STARTS, *a.shape[1:]), (latents, several)),
    )
    distances = jax.vmap(adversarial.square_distance)(
        candidates, jnp.broadcast_to(images[:, None], candidates.shape)
    )
    nearest = jnp.argmin(distances, axis=1) + STARTS * jnp.arange(len(labels))
    start = latents[nearest]
    generate = lambda latents: space.images(latents, labels)
    pixels, lpips = adversarial.square_distance, functools.partial(LPIPS().apply, perceptual)
    distance = pixels if perceptual is None else lambda a, b: pixels(a, b) + lpips(a, b)
    found = generate(
        adversarial.invert(generate, images, start, num_steps, distance=distance).latents
    )
    measured = {"_start": distances.min(axis=1), "": pixels(found, images)}
    return found, measured | ({} if perceptual is None else {"_lpips": lpips(found, images)})


def lpips_variables(image_shape: tuple[int, ...]) -> PyTree:
    """Return LPIPS' variables.

    None means that the weights are not installed, or that images are smaller than LPIPS takes.
    """
    if min(image_shape[:2]) < 16:
        return None
    try:
        return load_lpips()[1]
    except ImportError as error:
        print(f"inversion by pixels alone: {error}", file=sys.stderr)
        return None


def path_length(
    space: Space, key: Key[Array, ""], labels: Int[Array, " pairs"]
) -> Float[Array, ""]:
    """Return the path length between latents of the same class, as a mean square of pixels.

    The perceptual path length of the literature takes LPIPS in place of pixels. The space's
    generator must compute in float32, since latents change by 1e-4.
    """
    start_key, end_key, key = jax.random.split(key, 3)
    ends = (space.draw(each, labels) for each in (start_key, end_key))
    generate = lambda latents: space.images(latents, labels)
    interpolation = space.interpolation
    # Accelerators round products by more than a change of latents by 1e-4 changes.
    with jax.default_matmul_precision("highest"):
        return adversarial.perceptual_path_length(
            key, generate, *ends, interpolation=interpolation
        ).mean()


def _tell(what: Any) -> None:
    print(what, file=sys.stderr, flush=True)


def _save(path: Path, picture: Image.Image) -> None:
    save_picture(path, picture)
    _tell(path)


def _picture(task: Any, images: Array, columns: int, rows: Sequence[str] = ()) -> Image.Image:
    """Draw images of any leading axes, so many in a row, with the names of the rows."""
    flat = np.asarray(to_uint8(images)).reshape(-1, *task.space.shape)
    return label_rows(task.space.picture(flat, columns), rows)


def _draw_walk(
    task: Any, space: Space, key: Key[Array, ""], labels: Int[Array, " batch"], folder: Path
) -> None:
    """Save the film of a walk."""
    frames = jax.jit(functools.partial(walk, space))(key, labels)
    path = folder / f"walk_{space.name}.gif"
    save_animation(path, [_picture(task, frame, len(labels)) for frame in frames], hold=60)
    _tell(path)


def _draw_mixing(
    task: Any, space: Space, key: Key[Array, ""], labels: Int[Array, " batch"], folder: Path
) -> None:
    """Save a picture of mixed styles."""
    count = len(labels)
    mixed = jax.jit(functools.partial(mixing, space))(key, labels)
    names = ["the images", *(f"coarse styles of {number}" for number in range(1, count + 1))]
    _save(folder / "mixing.png", _picture(task, mixed, count, names))


def _draw_directions(
    task: Any,
    space: Space,
    variables: PyTree,
    key: Key[Array, ""],
    labels: Int[Array, " batch"],
    folder: Path,
) -> dict[str, Any]:
    """Save pictures of SeFa's and GANSpace's directions; return eigenvalues and variances."""
    find_closed_form = jax.jit(functools.partial(closed_form, task.generator))
    find_principal = jax.jit(functools.partial(principal, space, task.generator))
    found = {
        "directions": find_closed_form(variables),
        "principal_directions": find_principal(variables, key, labels[:1]),
    }
    draw = jax.jit(functools.partial(along_directions, space))
    for name, (directions, _) in found.items():
        along = draw(directions[: len(labels)], key, labels[:1])
        rows = [f"direction {number}" for number in range(1, len(along) + 1)]
        _save(folder / f"{name}.png", _picture(task, along, len(REACH), rows))
    keys = "direction_eigenvalues", "direction_variances"
    values = (np.asarray(each).tolist() for _, each in found.values())
    return dict(zip(keys, values, strict=True))


def _draw_inversions(
    task: Any,
    there: Sequence[Space],
    key: Key[Array, ""],
    held_out: dict[str, np.ndarray],
    num_steps: int,
    folder: Path,
) -> dict[str, Any]:
    """Save held-out images above those found in each space; return the mean distances.

    Without labels in the data, the label of every image is 0.
    """
    images, labels = to_float(held_out["image"]), jnp.asarray(labels_of(held_out))
    rows, perceptual = [jnp.asarray(images)], lpips_variables(task.space.shape)
    report: dict[str, Any] = {}
    for space in there:
        invert = jax.jit(functools.partial(inversion, space, num_steps=num_steps))
        found, distances = invert(key, images, labels, perceptual)
        rows.append(found)
        report |= {
            f"inversion_{space.name}{kind}": float(each.mean()) for kind, each in distances.items()
        }
        _tell(f"{num_steps} steps of inversion in {space.name}")
    names = [f"found in {space.name.replace('_plus', '+').upper()}" for space in there]
    sheet = _picture(task, jnp.stack(rows), len(images), ["held out", *names])
    _save(folder / "inversion.png", sheet)
    return report | {
        "held_out_images": len(images),
        "inversion_distance": "pixels" if perceptual is None else "pixels and LPIPS",
        "inversion_steps": num_steps,
    }


def explore(
    task: Any, state: Any, config: Any, folder: Path, count: int, num_steps: int, num_pairs: int
) -> dict[str, Any]:
    """Write the pictures into `folder`, and return the contents of `latents.json`."""
    weights, key = config.sampling.weights, jax.random.key(config.sampling.seed)
    variables = task.variables(state, weights)
    truncation = config.sampling.truncation
    there = spaces(task.generator, variables, truncation)
    num_classes = max(task.condition.num_classes, 1)
    labels, pairs = jnp.arange(count) % num_classes, jnp.arange(num_pairs) % num_classes
    folder.mkdir(exist_ok=True)
    report: dict[str, Any] = {}
    for space in there[:2]:
        _draw_walk(task, space, key, labels, folder)
    for space in spaces(in_float32(task.generator), variables, truncation)[:2]:
        length = jax.jit(functools.partial(path_length, space))(key, pairs)
        report[f"path_length_{space.name}"] = float(length)
    if len(there) > 1:
        _draw_mixing(task, there[2], key, labels, folder)
    if len(there) > 1 or hasattr(task.generator, "first_layer"):
        report |= _draw_directions(task, there[:2][-1], variables, key, labels, folder)
    source = Data.from_config(config).held_out().source
    chosen = source[draw(len(source), count)]
    report |= _draw_inversions(task, there, key, chosen, num_steps, folder)
    return report | {
        "pairs": num_pairs,
        "weights": weights,
        "truncation": truncation,
        "seed": config.sampling.seed,
        "steps": int(state.step),
        "device": device_name(),
    }
