"""Published systems, from text to images or videos, in the folders that diffusers writes.

A folder has a network, an autoencoder, text encoders, tokenizers and a schedule. `model_index.json`
lists them. A file of `genjax.pipelines.systems` says how a system uses its parts.
"""

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Sharding

from genjax import pretrained
from genjax.data.tokenizers import FILES, Tokenizer
from genjax.models.encoders.clip import resize_and_crop
from genjax.nn import Text
from genjax.pipelines.generation import Pipeline
from genjax.pretrained.clip import check_preparation
from genjax.pretrained.configuration import expect_kind, has_type, read_json
from genjax.pretrained.folders import check_fetched
from genjax.pretrained.published import members, record_of, records


def _config_name(part: str) -> str:
    """Return the name of the file with a part's configuration."""
    names = dict(scheduler="scheduler_config.json", image_processor="preprocessor_config.json")
    return names.get(part, "config.json")


@dataclass(frozen=True)
class Folder:
    """A system's folder, and how to load its parts; the arguments are those of `load`."""

    path: Path
    dtype: Any
    param_dtype: Any
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """Return `model_index.json`."""
        return read_json(self.path / "model_index.json")

    def config(self, part: str, read: Callable[[dict[str, Any]], Any] = dict) -> Any:
        """Return what `read` makes of a part's configuration.

        Raises:
            ValueError: `read` raises one; the error then names the file.
        """
        path = self.path / part / _config_name(part)
        config = read_json(path)
        try:
            return read(config)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error

    def class_of(self, part: str) -> str | None:
        """Return the class that the index gives a part; None if the system lacks the part.

        Raises:
            ValueError: the entry is not a pair of library and class.
        """
        entry = self.index.get(part) or [None, None]
        if not has_type(entry, list[str | None]) or len(entry) != 2:
            path = self.path / "model_index.json"
            raise ValueError(f"{path} has {part}={entry!r:.60}; expected [library, class]")
        return entry[1]

    def part(self, name: str) -> tuple[nn.Module, Any]:
        """Return a part's module and variables."""
        module, variables = pretrained.load(
            self.path / name, param_dtype=self.param_dtype, sharding=self.sharding
        )
        named = self.class_of(name)
        modules = {record.module for record in records() if record.name == named}
        if modules and type(module) not in modules:
            raise ValueError(
                f"{self.path / name / 'config.json'} describes a {type(module).__name__}, but "
                f"model_index.json names a {named}"
            )
        if self.dtype is not None:
            module = _computing_in(module, self.dtype)
        return module, variables if self.sharding else jax.device_put(variables)

    def encoder(self, suffix: str, length: int, take: Callable) -> Callable[[Sequence[str]], Any]:
        """Return a function from prompts to `take(module, variables, ids, mask)` of a text encoder.

        The encoder runs as one compiled program.

        Args:
            suffix: ends the names of the encoder's and tokenizer's folders, such as "_2".
            length: the number of tokens of every prompt.
            take: returns what the network needs of the encoder's output.
        """
        module, variables = self.part(f"text_encoder{suffix}")
        tokenizer = Tokenizer(self.path / f"tokenizer{suffix}")
        program = jax.jit(lambda variables, ids, mask: take(module, variables, ids, mask))
        return lambda prompts: program(variables, *tokenizer.encode(prompts, length))

    def image_encoder(self) -> Callable[[Any], Any]:
        """Return a function from pictures in [−1, 1] to the last but one states of CLIP's encoder.

        Raises:
            ValueError: the pictures are prepared in another way than the original CLIP's.
        """
        module, variables = self.part("image_encoder")
        size = module.image_size
        self.config("image_processor", lambda entries: check_preparation(entries, size))

        @jax.jit
        def program(variables, images):
            return module.apply(variables, resize_and_crop(images, size)).states[-2]

        return lambda images: program(variables, images)

    def size(self, autoencoder: nn.Module, latents: int) -> tuple[int, int]:
        """Return the height and width, in pixels, of the pictures the network was trained on.

        Args:
            latents: the default for a side of the latents, if the configuration gives none.
        """

        def side(config: dict[str, Any]) -> int:
            expect_kind(dict(sample_size=None) | config, "sample_size", int | None)
            return config.get("sample_size") or latents

        size = self.config("transformer", side) * autoencoder.factor
        return size, size


def _computing_in(module: nn.Module, dtype: Any) -> nn.Module:
    """Return a module that computes in a type. A module without `dtype` has parts that have it."""
    if "dtype" in vars(module):
        return module.clone(dtype=dtype)
    parts = {name: part for name, part in vars(module).items() if isinstance(part, nn.Module)}
    return module.clone(**{name: part.clone(dtype=dtype) for name, part in parts.items()})


@dataclass(frozen=True)
class System:
    """A published system. A file of `genjax.pipelines.systems` lists its systems in `SYSTEMS`.

    Attributes:
        name: the pipeline's name in `model_index.json`.
        encoder: from a folder to a function of prompts, `Pipeline`'s `condition`.
        settings: from a folder, its network and its autoencoder to further arguments of `Pipeline`.
        parts: names of the text encoders and tokenizers, and of an image's encoder and processor.
        optional: those parts that a folder may lack.
        network: from a folder to the network and its variables.
        entries: from a pipeline to further entries of `model_index.json`.
        pipeline: the class of its pipelines, called with the arguments of `Pipeline`.
    """

    name: str
    encoder: Callable[[Folder], Callable]
    settings: Callable[[Folder, Any, Any], dict[str, Any]]
    parts: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    network: Callable[[Folder], tuple[Any, Any]] = lambda folder: folder.part("transformer")
    entries: Callable[[Pipeline], dict[str, Any]] = lambda pipeline: {}
    pipeline: Callable[..., Pipeline] = Pipeline


def _find_system(name: Any, source: str) -> System:
    """Return the system with a name.

    Raises:
        ValueError: no system has the name.
    """
    systems = {system.name: system for system in members("genjax.pipelines.systems", "SYSTEMS")}
    if not isinstance(name, str) or name not in systems:
        raise ValueError(f"{source} describes {name!r}; known are {', '.join(systems)}")
    return systems[name]


def _open(folder: str | os.PathLike, **options: Any) -> tuple[Folder, System]:
    check_fetched(folder)
    path = Path(folder) / "model_index.json"
    if not path.exists():
        advice = "one part alone is for genjax.pretrained.load"
        raise FileNotFoundError(f"{path} does not exist; {advice}")
    folder = Folder(path.parent, **options)
    return folder, _find_system(folder.index.get("_class_name"), str(path))


def load_encoder(
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None,
) -> Callable[[Sequence[str]], Text]:
    """Return the text encoders of a system's folder as one function of prompts.

    The arguments and errors are those of `load`.
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
    """Return the pipeline of a folder, for pictures, videos or sounds.

    The systems are Stable Diffusion 3, FLUX.1, PixArt, DiT, Wan, LTX-Video, LTX-2 and
    Stable Audio.

        types = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        pipeline = load("stable-diffusion-3-medium-diffusers", **types)
        images = pipeline(["a corgi on a skateboard"], seeds=[7], guidance_scale=5.0)

    Each pipeline has its authors' schedule, text encoders and defaults. CLIP reads 77 tokens. T5
    reads 256 tokens for Stable Diffusion 3 and FLUX.1 schnell, 512 for FLUX.1 dev, 120 for
    PixArt-alpha, 300 for PixArt-sigma and 128 for LTX-Video. UMT5 reads 512 tokens for Wan.

    Wan and LTX-Video make videos. Wan 2.1 and 2.2 continue given frames too: their image-to-video
    folders need `images`, and Wan 2.2's 5B takes `images` or prompts alone. A folder with two
    networks, Wan 2.2's experts, switches between them at its `boundary_ratio`. LTX-Video makes 25
    frames per second; blocks of its decoder that add noise (0.9.1) add none here.

    Stable Audio makes sounds: its pipeline is a `SoundPipeline`. T5 reads as many tokens as its
    tokenizer's `model_max_length`.

    LTX-2 makes videos with sound: its pipeline is a `VideoSoundPipeline`. Gemma 3 reads 1,024
    tokens.

    Args:
        dtype: the type in which all networks compute; float32 if None.
        param_dtype, sharding: as in `genjax.pretrained.load`.
        batch_sharding: the sharding of prompts, noise and pictures, such as
            `genjax.devices.mesh.batch_sharding(mesh)`.

    Raises:
        FileNotFoundError: `model_index.json` is missing, or a part has no safetensors.
        ValueError: the system, or an entry of a configuration, is not supported; the error names
            it.
    """
    opened, system = _open(folder, dtype=dtype, param_dtype=param_dtype, sharding=sharding)
    network, variables = system.network(opened)
    autoencoder, autoencoder_variables = opened.part("vae")
    return system.pipeline(
        network,
        autoencoder,
        {"network": variables, "autoencoder": autoencoder_variables},
        condition=system.encoder(opened),
        sharding=batch_sharding,
        folder=opened.path,
        **system.settings(opened, network, autoencoder),
    )


def save(
    folder: str | os.PathLike, pipeline: Pipeline, system: str | None = None, **parts: Any
) -> None:
    """Write a pipeline as a folder that `load` and diffusers read.

    Networks, autoencoders and LTX-2's vocoder are written with their present variables, such as
    after fine-tuning. Text encoders, tokenizers and schedule are copied from the folder that they
    were loaded from. For a pipeline built by hand, name its system and give these parts, as here
    for FLUX.1:

        schedule = dict(_class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
        clip = dict(text_encoder=(clip_module, clip_variables), tokenizer=Tokenizer("clip"))
        t5 = dict(text_encoder_2=(t5_module, t5_variables), tokenizer_2=Tokenizer("t5"))
        save("mine", pipeline, "FluxPipeline", scheduler=schedule, **clip, **t5)

    The saved folder then has the system's own defaults for number of steps, guidance scale and
    picture size.

    Args:
        system: the published system, as `model_index.json` names it.
        parts: `scheduler`, the entries of `scheduler_config.json`; encoders as `(module,
            variables)`; tokenizers as a `Tokenizer` or the folder of its files; `image_processor`,
            the entries of `preprocessor_config.json`.

    Raises:
        FileExistsError: the folder exists and is not empty.
        ValueError: the pipeline was not loaded from a folder, and system or parts are missing or
            unknown; or the schedule differs from the pipeline's; or a network has no published
            form.
    """
    folder = Path(folder).absolute()
    if system is None and pipeline.folder is None:
        raise ValueError(
            "this pipeline was not loaded from a folder, so name its system and give the parts; "
            "to save its networks alone, use genjax.pretrained.save"
        )
    system = None if system is None else _find_system(system, "this pipeline")
    if system is not None:
        _check_parts(system, parts)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; save in a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    networks = pipeline.networks()
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as unfinished:
        whole = Path(unfinished) / folder.name
        whole.mkdir()
        if system is None:
            _copy(Path(pipeline.folder), whole, networks)
        else:
            _write(whole, system, networks | parts, pipeline)
        whole.replace(folder)


def _copy(source: Path, whole: Path, networks: dict[str, tuple[nn.Module, Any]]) -> None:
    """Write the networks, and copy all other parts of their original folder."""
    shutil.copy(source / "model_index.json", whole)
    for name in read_json(source / "model_index.json").keys() - networks.keys():
        if (source / name).is_dir():
            shutil.copytree(source / name, whole / name)
    for name, (module, variables) in networks.items():
        config = read_json(source / name / "config.json")
        kept = {entry: config[entry] for entry in record_of(module).unused if entry in config}
        pretrained.save(whole / name, module, variables, **kept)


def _check_parts(system: System, parts: Mapping[str, Any]) -> None:
    """Check that the parts are those of a system.

    Raises:
        ValueError: parts are missing or unknown; the error names all of them.
    """
    needed = ("scheduler", *system.parts)
    if missing := [
        name for name in needed if parts.get(name) is None and name not in system.optional
    ]:
        raise ValueError(
            f"{system.name} needs {', '.join(missing)}: give the scheduler as a dictionary, "
            "encoders as (module, variables), and tokenizers as a Tokenizer or the folder of "
            "its files"
        )
    if unknown := sorted(parts.keys() - set(needed)):
        raise ValueError(f"{system.name} has no {', '.join(unknown)}; it has {', '.join(needed)}")


def _write(whole: Path, system: System, parts: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Write all parts and their index.

    Raises:
        ValueError: the schedule differs from the pipeline's.
    """
    index: dict[str, Any] = dict(_class_name=system.name) | system.entries(pipeline)
    for name in (*pipeline.networks(), "scheduler", *system.parts):
        entries = {}
        if name == "transformer" and "sample_size" in record_of(parts[name][0]).unused:
            entries = dict(sample_size=pipeline.size[0] // pipeline.autoencoder.factor)
        index[name] = _write_part(whole / name, parts.get(name), **entries)
    (whole / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    settings = system.settings(
        Folder(whole, None, None, None), pipeline.network, pipeline.autoencoder
    )
    same = {name: settings[name] is getattr(pipeline, name) for name in ("target", "sampler")}
    times = pipeline.grid(4, 64)
    same["grid"] = np.array_equal(settings["grid"](4, 64), times)
    levels = ((p.alpha(times), p.sigma(times)) for p in (settings["process"], pipeline.process))
    same["process"] = np.array_equal(*levels)
    if wrong := [name for name, is_same in same.items() if not is_same]:
        raise ValueError(
            f"scheduler={parts['scheduler']} gives {system.name} another {', '.join(wrong)} than "
            "this pipeline has: give the pipeline's schedule"
        )


def _write_part(folder: Path, part: Any, **entries: Any) -> list[str | None]:
    """Write a part, and return its library and class; both are None if the part is missing."""
    if part is None:
        return [None, None]
    if isinstance(part, Mapping):
        folder.mkdir()
        (folder / _config_name(folder.name)).write_text(json.dumps(dict(part), indent=2) + "\n")
        if "image_processor_type" in part:
            return ["transformers", part["image_processor_type"]]
        return ["diffusers", part.get("_class_name")]
    if isinstance(part, tuple):
        module, variables = part
        pretrained.save(folder, module, variables, **entries)
        record = record_of(module)
        return [record.library.name.rpartition(".")[2], record.name]
    tokenizer = part if isinstance(part, Tokenizer) else Tokenizer(part)
    if tokenizer.kind is None:
        raise ValueError(f"{tokenizer.folder}/tokenizer_config.json has no tokenizer_class: add it")
    folder.mkdir()
    for path in filter(Path.exists, (tokenizer.folder / name for name in FILES)):
        shutil.copy(path, folder)
    return ["transformers", tokenizer.kind]
