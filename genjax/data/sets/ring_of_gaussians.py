"""8 Gaussians on a circle in the plane."""

from genjax.data.dataset import Dataset
from genjax.data.sets.gaussians import points_of


def load_ring_of_gaussians(split: str) -> Dataset:
    """Return points, with their modes as labels; raise ValueError on an unknown split."""
    return points_of("ring_of_gaussians", split)
