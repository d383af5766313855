"""25 Gaussians on a grid in the plane."""

from genjax.data.dataset import Dataset
from genjax.data.sets.gaussians import points_of


def load_grid_of_gaussians(split: str) -> Dataset:
    """Return points, with their modes as labels; raise ValueError on an unknown split."""
    return points_of("grid_of_gaussians", split)
