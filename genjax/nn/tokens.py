"""How the codes of a tokenizer form the sequence of a transformer."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


@dataclass(frozen=True)
class TokenLayout:
    """The codes of an example, `shape`, as a sequence of `length` tokens below `vocabulary`.

    Codes are a grid, row by row; a residual quantizer's levels of a place follow one another. The
    grid of a sound has frames as rows and the levels of a codec as columns: the flattening pattern
    of Copet et al. 2023 ("MusicGen", section 2.2). Maps of several scales follow one another, from
    coarse to fine.

    Attributes:
        shape: of an example's codes: rows and columns, or frames, and levels if there are several;
            or all tokens of maps of several scales.
        vocabulary: how many codes there are.
        sides: of the maps, for several scales; None for a grid.
    """

    shape: tuple[int, ...]
    vocabulary: int
    sides: tuple[int, ...] | None = None

    @classmethod
    def of_quantizer(cls, quantizer: nn.Module, rows: int, columns: int) -> "TokenLayout":
        """Return the layout of the codes of latents `[batch rows columns features]`.

        Args:
            quantizer: one of `genjax.nn.quantizers` or `genjax.nn.multiscale`.

        Raises:
            ValueError: the quantizer takes latents of another side.
        """
        latents = jax.ShapeDtypeStruct((1, rows, columns, quantizer.features), jnp.float32)
        key = jax.random.key(0)
        quantized, _ = jax.eval_shape(quantizer.init_with_output, key, latents)
        sides = getattr(quantizer, "sides", None)
        shape = quantized.indices.shape[1:]
        return cls(shape, quantizer.num_codes, sides if sides is None else tuple(sides))

    @classmethod
    def of_tokenizer(cls, tokenizer: nn.Module, image_shape: tuple[int, ...]) -> "TokenLayout":
        """Return the layout of the codes of images.

        Args:
            tokenizer: a network with `encode` and a quantizer, such as `VQModel`.
            image_shape: height, width and channels.
        """
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        encode = lambda key, x: tokenizer.init_with_output(key, x, method="encode")[0]
        rows, columns = jax.eval_shape(encode, jax.random.key(0), images).shape[1:3]
        return cls.of_quantizer(tokenizer.quantizer, rows, columns)

    @property
    def length(self) -> int:
        return math.prod(self.shape)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows, and tokens of a row."""
        return self.shape[0], self.length // self.shape[0]

    def sequence(self, codes: Int[Array, " batch *shape"]) -> Int[Array, "batch length"]:
        """Return codes as a sequence."""
        return codes.reshape(len(codes), self.length)

    def codes(self, sequence: Int[Array, "batch length"]) -> Int[Array, " batch *shape"]:
        """Return the codes of a sequence."""
        return sequence.reshape(len(sequence), *self.shape)

    def check(self, network: Any) -> None:
        """Check that a transformer is made for these tokens, before any compute.

        Its `vocabulary`, and its `sides` or its `grid`, must be those of the tokenizer.

        Raises:
            ValueError: they are others.
        """
        for name in ("vocabulary", "grid" if self.sides is None else "sides"):
            own = getattr(self, name)
            value = getattr(network, name, None)
            value = tuple(value) if isinstance(value, list) else value
            if value != own:
                raise ValueError(
                    f"the tokenizer has {name} {own}, and the {type(network).__name__} {value}: "
                    f"set the network's {name} to {own}"
                )
