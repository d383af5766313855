"""Properties that networks of several families share."""


class OfClasses:
    """A network of `num_classes` classes, or None, and of a null class for guidance."""

    @property
    def null_label(self) -> int | None:
        """The label of the null class."""
        return self.num_classes


class OverPatches:
    """A network over square patches of `patch_size` pixels a side."""

    @property
    def divisor(self) -> int:
        """The number that the input's height and width are multiples of."""
        return self.patch_size
