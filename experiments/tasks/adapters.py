"""Low-rank adapters of a frozen network, to be trained in its place (Hu et al. 2021, "LoRA")."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from experiments.configuration.runs import open_run
from experiments.inputs.autoencoders import on_host
from genjax import parts, pretrained
from genjax.pretrained.lora import apply_lora, init_lora


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters, trained instead of a network's parameters.

    Attributes:
        source: folder of published weights or of a run, whose network is adapted.
        rank: of the adapters.
        select: a regular expression of the paths of the kernels that get adapters.
        scale: what the adapters' product is multiplied by, alpha/rank.
        dtype, remat_policy: fields of the network; its own if None.
    """

    source: str
    rank: int = 8
    select: str = r"(query|key|value|query_key_value)/kernel$"
    scale: float = 1.0
    dtype: str | None = None
    remat_policy: str | None = None

    def __post_init__(self):
        try:
            re.compile(self.select)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"config.adapters.select is {self.select!r}, no regular expression: {error}"
            ) from error

    @classmethod
    def from_config(cls, fields: Mapping[str, Any]) -> "Adapters | None":
        """Return the adapters of `config.adapters`, None if it is empty.

        Raises:
            ValueError: it has other fields, no source, or a wrong regular expression.
        """
        if not fields:
            return None
        if not fields.get("source"):
            raise ValueError(
                "config.adapters.source is missing: give a folder of published weights, or of a run"
            )
        return parts.bind_to(cls, dict(fields), (), "config.adapters")()

    @property
    def network(self) -> nn.Module:
        fields = dict(dtype=self.dtype and jnp.dtype(self.dtype), remat_policy=self.remat_policy)
        return _source(self.source)[0].clone(
            **{name: value for name, value in fields.items() if value}
        )

    def load(self) -> PyTree:
        """Load the parameters of the frozen network, on the host."""
        return _source(self.source)[1]["params"]

    def init(self, key: Key[Array, ""], params: PyTree) -> PyTree:
        """Return adapters that change nothing yet.

        Args:
            params: of the network, or their shapes.

        Raises:
            ValueError: no kernel is selected.
        """
        return init_lora(key, params, self.rank, re.compile(self.select).search)

    def describe(self) -> str:
        """Return how many parameters are trained, and beside which."""
        params = self.load()
        trained = jax.eval_shape(lambda key: self.init(key, params), jax.random.key(0))
        count = lambda tree: f"{sum(a.size for a in jax.tree.leaves(tree)):,}"
        return (
            f"adapters of rank {self.rank}: {count(trained)} parameters are trained, and "
            f"{count(params)} of {self.source} stay"
        )

    def apply(self, params: PyTree, adapters: PyTree) -> PyTree:
        """Return the parameters of the adapted network."""
        return apply_lora(params, adapters, self.scale)

    def rescaled(self, adapters: PyTree, scale: float) -> PyTree:
        """Return adapters that were trained at `scale`, so that they change the network as then."""
        ratio = scale / self.scale
        return {path: each | {"up": ratio * each["up"]} for path, each in adapters.items()}


@functools.cache
def _source(folder: str) -> tuple[nn.Module, PyTree]:
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"config.adapters.source names {Path(folder).absolute()}, and there is no such folder"
        )
    if (Path(folder) / "checkpoints").is_dir():
        run = open_run(folder)
        return run.network, on_host(run.variables)
    return pretrained.load(folder)
