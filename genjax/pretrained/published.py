"""The record of a published class, by which its folders are read, checked and written."""

import dataclasses
import functools
import importlib
import os
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from genjax.pretrained.configuration import Field, complete, read_json
from genjax.pretrained.layouts import Names, from_torch, to_torch
from genjax.pretrained.safetensors_io import NAMES, open_tensors
from genjax.pretrained.variables import load_variables, save_variables

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Library:
    """A library that publishes networks as folders of `config.json` and safetensors.

    Attributes:
        name: the name that Python imports. `model_index.json` has its last part. None for authors
            who publish state dicts alone.
        weights: name of the file of weights, without its extension.
        header: from a class and the type of its weights to the first entries of a configuration.
        unused: entries of configurations that do not concern a network.
    """

    name: str | None
    weights: str
    header: Callable[[str, str], dict[str, Any]]
    unused: frozenset[str] = frozenset()


DIFFUSERS = Library("diffusers", NAMES[0], lambda name, dtype: dict(_class_name=name))
DIFFUSERS_LTX2 = dataclasses.replace(DIFFUSERS, name="diffusers.pipelines.ltx2")
TRANSFORMERS = Library(
    "transformers",
    NAMES[1],
    lambda name, dtype: dict(architectures=[name], dtype=dtype),
    # These entries concern training, generation, other tasks and the library itself.
    frozenset(
        """
        architectures model_type dtype torch_dtype transformers_version use_cache tokenizer_class
        dropout attention_dropout dropout_rate classifier_dropout initializer_range
        initializer_factor problem_type bos_token_id pad_token_id sep_token_id
        decoder_start_token_id finetuning_task task_specific_params id2label label2id num_labels
        prefix return_dict return_dict_in_generate output_attentions output_hidden_states
        output_past output_scores torchscript use_bfloat16 tf_legacy_loss gradient_checkpointing
        chunk_size_feed_forward pruned_heads is_encoder_decoder add_cross_attention
        cross_attention_hidden_size tie_encoder_decoder tie_word_embeddings max_length min_length
        do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
        top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
        encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id
        forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
        begin_suppress_tokens
        """.split()
    ),
)


@dataclass(frozen=True)
class Published:
    """A class of networks as a library publishes it, and its form here.

    A file of this package lists its records in `PUBLISHED`, and nothing else names them.

    Attributes:
        name: the class's name in `config.json`.
        module: our class.
        entries: the known entries of configurations, as `genjax.pretrained.configuration.complete`
            takes them.
        inputs: from a module and its configuration to the inputs that `init` takes after the key.
        names: from a module and the names in a file to a function from variables to the names of
            their tensors, as `load_variables` takes it. When a file is written, there are no names.
        examples: small configurations for the tests; each becomes a network.
        unused: entries that do not concern the network.
        build: from a configuration to the fields of the module that correspond to no single entry.
        config: from a module and its variables to the entries that correspond to no single field.
        convert: from a module, a variable and its tensors to the array in our layout.
        invert: from a module, a variable and its array to its tensors.
        adapt: from a module and its tensors to the module with fields that only tensors tell.
        pack: from a module and its variables to the variables to write.
        ignore: whether a tensor that belongs to no variable may be left out, by its name and value.
        writes: whether modules are written as this class, if several classes have the same
            `module`.
        alias: entries that identify a configuration with an old name of the class.
    """

    library: Library
    name: str
    module: type[nn.Module]
    entries: Config
    inputs: Callable[[Any, Config], tuple]
    names: Callable[[Any, Collection[str]], Callable[[str], Names]]
    examples: tuple[Config, ...]
    unused: Collection[str] = ()
    build: Callable[[Config], Config] = lambda config: {}
    config: Callable[[Any, PyTree], Config] = lambda module, variables: {}
    convert: Callable[..., np.ndarray] = lambda module, *pair: from_torch(*pair)
    invert: Callable[[Any, str, np.ndarray], Any] = lambda module, *pair: to_torch(
        *pair, getattr(module, "patch_size", None)
    )
    adapt: Callable[[Any, Mapping[str, np.ndarray]], nn.Module] = lambda module, tensors: module
    pack: Callable[[Any, PyTree], PyTree] = lambda module, variables: variables
    ignore: Callable[[str, np.ndarray], bool] = lambda name, tensor: False
    writes: Callable[[Any], bool] = lambda module: True
    alias: Config | None = None

    def describes(self, config: Config) -> bool:
        """Return whether a configuration names this class."""
        former = self.alias is not None and self.alias.items() <= config.items()
        return former or class_of(config) == self.name

    def complete(self, config: Config) -> dict[str, Any]:
        """Return all entries that concern the network.

        Raises:
            ValueError: an entry is unknown, or its value is not supported.
        """
        return complete(config, self.entries, {*self.library.unused, *self.unused})

    def make(self, config: Config) -> nn.Module:
        """Return the module of a complete configuration."""
        return self.module(**self.fields(config))

    def fields(self, config: Config) -> dict[str, Any]:
        """Return the fields of the module of a complete configuration."""
        fields = {}
        for name, field in self._fields():
            value = _as_tuple(config[name])
            fields[field.name] = field.coded[value] if field.coded else value
        return {**fields, **self.build(config)}

    def write(self, module: nn.Module, variables: PyTree) -> dict[str, Any]:
        """Return the configuration of a module, without the library's header."""
        entries = {}
        for name, field in self._fields():
            value = getattr(module, field.name)
            codes = {ours: code for code, ours in (field.coded or {}).items()}
            entries[name] = codes[value] if codes else value
        return {**entries, **self.config(module, variables)}

    def _fields(self) -> list[tuple[str, Field]]:
        return [(name, each) for name, each in self.entries.items() if isinstance(each, Field)]

    def shapes(self, module: nn.Module, config: Config) -> PyTree:
        """Return the shapes and types of the module's variables."""
        return jax.eval_shape(lambda: module.init(jax.random.key(0), *self.inputs(module, config)))

    def load(
        self, folder: str | os.PathLike, abstract: Callable[[PyTree], PyTree] = lambda tree: tree
    ) -> tuple[nn.Module, PyTree]:
        """Read the module and its variables from a folder of this class.

        Args:
            abstract: from the expected shapes and types to the wanted ones, possibly with
                shardings.

        Raises:
            ValueError: as for `genjax.pretrained.load`.
        """
        weights = self.library.weights
        tensors = open_tensors(folder, weights)
        module, shapes = self._network(Path(folder) / "config.json", tensors)
        names, convert = self.names(module, tensors), functools.partial(self.convert, module)
        expected, ignore = abstract(shapes), self.ignore
        return module, load_variables(folder, expected, names, convert, ignore, prefer=weights)

    def _network(self, path: Path, tensors: Mapping[str, np.ndarray]) -> tuple[nn.Module, PyTree]:
        """Return the module that a configuration describes, and the shapes of its variables."""
        config = read_json(path)
        try:
            config = self.complete(config)
            module = self.adapt(self.make(config), tensors)
            return module, self.shapes(module, config)
        except Exception as error:  # right types can fail too, such as 0 heads
            fault = str(error).partition("\n")[0]
            if type(error) is not ValueError:
                fault = f"{type(error).__name__}: {fault}"
            raise ValueError(f"{path} cannot be read as {self.name}: {fault}") from error

    def save(self, folder: str | os.PathLike, module: Any, variables: PyTree, **entries: Any):
        """Write a folder of this class; `genjax.pretrained.save` has the arguments and errors."""
        try:
            config = self.write(module, variables) | entries
            self.complete(config)
        except ValueError as error:
            name = type(module).__name__
            raise ValueError(f"this {name} cannot be saved as {self.name}: {error}") from error
        header = self.library.header(self.name, str(jax.tree.leaves(variables)[0].dtype))
        names, invert = self.names(module, ()), functools.partial(self.invert, module)
        packed, file = self.pack(module, variables), self.library.weights
        save_variables(folder, header | config, packed, names, invert, name=file)


def _as_tuple(value: Any) -> Any:
    """Return a JSON value with tuples instead of lists, as in the fields of modules."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def example(*shape: int, dtype: Any = jnp.float32) -> Array:
    """Return an example input of a network, a batch of one."""
    return jnp.zeros((1, *shape), dtype)


def class_of(config: Config) -> str | None:
    """Return the class that a configuration of diffusers or of transformers names."""
    named = config.get("_class_name") or config.get("architectures")
    return next(iter(named), None) if isinstance(named, list) else named


def members(package: str, attribute: str) -> tuple[Any, ...]:
    """Return the items that a package's modules list in `attribute`, by order of module names."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    modules = [importlib.import_module(f"{package}.{info.name}") for info in found]
    return tuple(member for module in modules for member in getattr(module, attribute, ()))


@functools.cache
def records() -> tuple[Published, ...]:
    """Return the records of all files of this package."""
    return members("genjax.pretrained", "PUBLISHED")


def record_of(module: nn.Module) -> Published:
    """Return the record of the class in whose form a module is written.

    Raises:
        ValueError: no library publishes such a module.
    """
    for record in records():
        if type(module) is record.module and record.writes(module):
            return record
    raise ValueError(f"there is no published form of {type(module).__name__} to save it in")
