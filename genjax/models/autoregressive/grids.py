"""Grids of tokens."""


def wrong_length(length: int, grid: tuple[int, int]) -> ValueError:
    """Return the error for a sequence whose length does not fit a grid of rows and columns."""
    rows, columns = grid
    return ValueError(
        f"a grid of {rows}×{columns} has {rows * columns} tokens; got {length}: the tokenizer and "
        "the network must have one grid"
    )
