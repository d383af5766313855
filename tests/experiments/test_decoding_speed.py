"""The program that times decoding runs, and names what it measured."""

from experiments.decoding_speed import measure
from genjax.models.autoregressive.prefixes import ClassPrefix


def test_every_row_is_measured():
    size = dict(vocabulary=7, width=16, depth=1, num_heads=2, prefix=ClassPrefix(3))
    rows = measure(4, 3, **size)
    assert list(rows) == [
        "training step",
        "token without a cache",
        *("token, a cache of 4", "token, a cache of 16", "token, a cache of 64"),
        "token, a cache of 16, the last 3",
    ]
    assert all(0 < value < 60 for value in rows.values())
