"""Grids of tokens."""


class OverGrid:
    """A network of the tokens of a `grid`, a pair of rows and columns."""

    @property
    def length(self) -> int:
        """The number of tokens of an example."""
        return self.grid[0] * self.grid[1]


def wrong_length(length: int, grid: tuple[int, int]) -> ValueError:
    """Return the error for a sequence whose length does not fit a grid of rows and columns."""
    rows, columns = grid
    return ValueError(
        f"a grid of {rows}×{columns} has {rows * columns} tokens; got {length}: the tokenizer and "
        "the network must have one grid"
    )
