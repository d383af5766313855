"""Diffusion of clips and images of any size in one batch, packed in rows.

Dehghani et al. 2023, "Patch n' pack: NaViT"; Brooks et al. 2024 ("Sora") for video.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from experiments.tasks.diffusion import TIME_BINS, Diffusion
from experiments.tasks.optimization import State
from genjax import diffusion
from genjax.data import RowFormat
from genjax.nn.packing import gather_slots
from genjax.training import Mean


@dataclass(frozen=True)
class PackedDiffusion(Diffusion):
    """A network trained on rows of clips, each with a condition and a time of its own.

    `config.batch_size` counts rows. `config.packing` has `length`, `slots` and `frames` of
    `RowFormat`; with `config.data.buckets` clips also vary in height and width. Sizes are those of
    the network's space. Sampling and evaluation call the same network on whole clips, as
    `Diffusion` does.

    Attributes:
        packing: the form of the rows.
    """

    packing: RowFormat | None = None
    config_fields = dict(packing={})

    @classmethod
    def fields(cls, config: Any) -> dict[str, Any]:
        """Return the fields of the task of a config.

        Raises:
            ValueError: as of `Diffusion`; the network takes no packed rows; the loss takes no times
                by token; the config needs whole clips or equal parts of a batch; or it does not
                give the form of rows.
        """
        fields = super().fields(config)
        network, space = fields["network"], fields["space"]
        if not hasattr(network, "packed"):
            raise ValueError(
                f"config.model names {config.model.name}, which takes no packed rows; take VideoDiT"
            )
        takes = inspect.signature(fields["objective"].loss).parameters
        if "time_axes" not in takes or "time_axes" in config.loss:
            raise ValueError(
                f"config.loss is {dict(config.loss)}, but packed clips have one time each: take "
                "simple_loss or hybrid_loss, without time_axes"
            )
        if space.autoencoder and not space.directory:
            raise ValueError(
                "packed rows hold patches of latents, which are encoded before: set "
                "config.space.directory to a folder that experiments.encode writes"
            )
        if config.data.flip and not space.autoencoder:
            raise ValueError("rows of patches are not mirrored: set config.data.flip to False")
        if config.accumulation_steps != 1:
            raise ValueError(
                f"config.accumulation_steps is {config.accumulation_steps}, but parts of a batch "
                "have different numbers of tokens: set it to 1"
            )
        layout = dict(config.get("packing", {}))
        if not {"length", "slots"} <= layout.keys() <= {"length", "slots", "frames"}:
            raise ValueError(
                f"config.packing is {layout}; it must be dict(length=…, slots=…), the patches and "
                "clips of a row, and may have frames=(…)"
            )
        layout["frames"] = tuple(layout.get("frames", ()))
        return fields | {"packing": RowFormat(patch_size=tuple(network.patch_size), **layout)}

    def update(
        self, state: State, batch: dict[str, Array], key: Key[Array, ""], frozen: PyTree = None
    ) -> tuple[State, dict[str, Float[Array, ""] | Mean]]:
        """Return the state after a step, and metrics; `real_tokens` is their share of the rows."""
        state, metrics = super().update(state, batch, key, frozen)
        return state, metrics | {"real_tokens": jnp.mean(batch["segments"] >= 0)}

    def _loss(
        self, params: PyTree, batch: dict, key: Key[Array, ""], state: State, frozen: PyTree
    ) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        """Return the mean loss of the real tokens, and sums and counts by parts of the time."""
        dropout_key, loss_key = jax.random.split(key)
        segments, objective = batch["segments"], self.objective
        x = self._examples(batch, key, frozen)
        condition = self._conditions(batch, dropout_key, frozen)
        slots = len(segments), self.packing.slots
        each, t = objective.losses(
            loss_key,
            self._on_rows(params, segments, batch["positions"], frozen),
            x,
            condition,
            variates=lambda key, _: gather_slots(objective.variates(key, slots), segments),
            time_axes=2,
        )
        real = (segments >= 0).astype(each.dtype)
        each = jnp.where(segments >= 0, each, 0)
        sums, _ = diffusion.sums_by_time(self.process, each, t, TIME_BINS)
        counts, _ = diffusion.sums_by_time(self.process, real, t, TIME_BINS)
        return each.sum() / real.sum(), (sums, counts)

    def _on_rows(
        self,
        params: PyTree,
        segments: Int[Array, "rows length"],
        positions: Int[Array, "rows length 3"],
        frozen: PyTree,
    ) -> Any:
        """Return the network on rows of patches, `[rows length elements channels]`."""
        network = self._apply(params, frozen)

        def apply(x_t, t, condition):
            tokens = x_t.reshape(*segments.shape, -1)
            output = network(tokens, t, condition, segments, positions, method="packed")
            return output.reshape(*x_t.shape[:3], -1)

        return apply

    def _conditions(self, batch: dict, key: Key[Array, ""], frozen: PyTree) -> PyTree:
        """Return the conditions of the clips, `[rows slots …]`, some of them dropped."""
        rows, slots = len(batch["segments"]), self.packing.slots
        of_rows = self.space.feature, "segments", "positions"
        by_clip = {"slot": jnp.arange(rows * slots)} | {
            name: a.reshape(-1, *a.shape[2:]) for name, a in batch.items() if name not in of_rows
        }
        condition, null = self.condition.of_batch(by_clip), self.condition.null(frozen)
        dropped = diffusion.drop_conditioning(key, condition, null, self.objective.dropout_rate)
        return jax.tree.map(lambda a: a.reshape(rows, slots, *a.shape[1:]), dropped)
