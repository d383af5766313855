"""Published text-to-image systems as diffusers writes them.

A folder has a network, an autoencoder, text encoders, tokenizers and a schedule, which
`model_index.json` lists. A file of `genjax.pipelines.systems` says how a system uses its parts.
"""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Sharding

from genjax import pretrained
from genjax.data.tokenizers import Tokenizer
from genjax.nn import Text
from genjax.pipelines.generation import Pipeline
from genjax.pretrained.configuration import read_json
from genjax.pretrained.published import members, record_of


@dataclass(frozen=True)
class Folder:
    """A folder of a system, and how to load its parts; arguments are those of `load`."""

    path: Path
    dtype: Any
    param_dtype: Any
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """Return `model_index.json`."""
        return read_json(self.path / "model_index.json")

    def config(self, part: str) -> dict[str, Any]:
        """Return the configuration of a part."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_json(self.path / part / name)

    def part(self, name: str) -> tuple[nn.Module, Any]:
        """Return a part's module and variables."""
        module, variables = pretrained.load(
            self.path / name, param_dtype=self.param_dtype, sharding=self.sharding
        )
        if self.dtype is not None:
            module = module.clone(dtype=self.dtype)
        return module, variables if self.sharding else jax.device_put(variables)

    def encoder(self, suffix: str, length: int, take: Callable) -> Callable[[Sequence[str]], Any]:
        """Return one program from prompts to `take(module, variables, ids, mask)` of an encoder.

        Args:
            suffix: of its part's name and its tokenizer's, such as "_2".
            length: of every prompt, in tokens.
        """
        module, variables = self.part(f"text_encoder{suffix}")
        tokenizer = Tokenizer(self.path / f"tokenizer{suffix}")
        program = jax.jit(lambda variables, ids, mask: take(module, variables, ids, mask))
        return lambda prompts: program(variables, *tokenizer.encode(prompts, length))

    def size(self, autoencoder: nn.Module, latents: int) -> tuple[int, int]:
        """Return height and width of the pictures that the network was trained on.

        Args:
            latents: a side of theirs where the configuration does not say it.
        """
        side = self.config("transformer").get("sample_size", latents) * autoencoder.factor
        return side, side


@dataclass(frozen=True)
class System:
    """A published system. A file of `genjax.pipelines.systems` lists its own in `SYSTEMS`.

    Attributes:
        name: of its pipeline, as `model_index.json` has it.
        encoder: from a folder to a function of prompts, `Pipeline`'s `condition`.
        settings: from a folder, its network and its autoencoder to further arguments of `Pipeline`.
    """

    name: str
    encoder: Callable[[Folder], Callable]
    settings: Callable[[Folder, Any, Any], dict[str, Any]]


def _open(folder: str | os.PathLike, **options: Any) -> tuple[Folder, System]:
    path = Path(folder) / "model_index.json"
    if not path.exists():
        advice = "one part alone is for genjax.pretrained.load"
        raise FileNotFoundError(f"{path} does not exist; {advice}")
    folder = Folder(path.parent, **options)
    systems = {system.name: system for system in members("genjax.pipelines.systems", "SYSTEMS")}
    name = folder.index.get("_class_name")
    if name not in systems:
        raise ValueError(f"{path} describes {name!r}; known are {', '.join(systems)}")
    return folder, systems[name]


def load_encoder(
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None,
) -> Callable[[Sequence[str]], Text]:
    """Return the text encoders of a system's folder as one function of prompts.

    Arguments and errors are those of `load`.
    """
    opened, system = _open(folder, dtype=dtype, param_dtype=param_dtype, sharding=sharding)
    return system.encoder(opened)


def load(
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None,
    batch_sharding: Sharding | None = None,
) -> Pipeline:
    """Return a folder's pipeline: Stable Diffusion 3 and 3.5, FLUX.1, PixArt (alpha, sigma) or DiT.

        types = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        pipeline = load("stable-diffusion-3-medium-diffusers", **types)
        images = pipeline(["a corgi on a skateboard"], seeds=[7], guidance_scale=5.0)

    Each has the schedule, the text encoders and the defaults of its authors. CLIP reads 77 tokens.
    T5 reads 256 for Stable Diffusion 3 and FLUX.1 schnell, 512 for FLUX.1 dev, 120 for PixArt-alpha
    and 300 for PixArt-sigma.

    Args:
        dtype: in which all networks compute; float32 if None.
        param_dtype, sharding: as in `genjax.pretrained.load`.
        batch_sharding: of prompts, noise and pictures, such as
            `genjax.devices.mesh.batch_sharding(mesh)`.

    Raises:
        FileNotFoundError: there is no `model_index.json`, or a part has no safetensors.
        ValueError: the system, or an entry of a configuration, is not supported, by name.
    """
    opened, system = _open(folder, dtype=dtype, param_dtype=param_dtype, sharding=sharding)
    network, variables = opened.part("transformer")
    autoencoder, autoencoder_variables = opened.part("vae")
    return Pipeline(
        network,
        autoencoder,
        {"network": variables, "autoencoder": autoencoder_variables},
        condition=system.encoder(opened),
        sharding=batch_sharding,
        folder=opened.path,
        **system.settings(opened, network, autoencoder),
    )


def save(folder: str | os.PathLike, pipeline: Pipeline) -> None:
    """Write a pipeline as a folder that `load` reads, and diffusers.

    Network and autoencoder are written as they are now, such as after fine-tuning. The others,
    text encoders, tokenizers and schedule, are copied from the folder that they were loaded from.

    Raises:
        FileExistsError: the folder exists and is not empty.
        ValueError: the pipeline was not loaded from a folder, or a network has no published form.
    """
    folder = Path(folder).absolute()
    if pipeline.folder is None:
        raise ValueError(
            "this pipeline was not loaded from a folder, so there are no text encoders to copy; "
            "save its networks by genjax.pretrained.save"
        )
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; save in a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    networks = dict(
        transformer=(pipeline.network, pipeline.variables["network"]),
        vae=(pipeline.autoencoder, pipeline.variables["autoencoder"]),
    )
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as unfinished:
        source, whole = Path(pipeline.folder), Path(unfinished) / folder.name
        whole.mkdir()
        shutil.copy(source / "model_index.json", whole)
        for name in read_json(source / "model_index.json").keys() - networks.keys():
            if (source / name).is_dir():
                shutil.copytree(source / name, whole / name)
        for name, (module, variables) in networks.items():
            config = read_json(source / name / "config.json")
            kept = {entry: config[entry] for entry in record_of(module).unused if entry in config}
            pretrained.save(whole / name, module, variables, **kept)
        whole.replace(folder)
