"""How the codes of a tokenizer form the sequence of a transformer."""

import math
from dataclasses import dataclass
from typing import Any

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
