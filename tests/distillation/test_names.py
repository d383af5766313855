"""Test which names the package exports."""

import pkgutil

from genjax import distillation


def test_losses_and_files_are_names_of_the_package():
    """Adversaries' losses are names of their file alone: `genjax.adversarial` has others."""
    files = [each.name for each in pkgutil.iter_modules(distillation.__path__)]
    modules = [getattr(distillation, name) for name in files]
    losses = {
        name: getattr(module, name)
        for module in modules
        for name in vars(module)
        if name.endswith("_loss") and getattr(module, name).__module__ == module.__name__
    }
    exported = {name: loss for name, loss in losses.items() if hasattr(distillation, name)}
    assert losses.keys() - exported.keys() == {"discriminator_loss", "generator_loss"}
    assert all(getattr(distillation, name) is loss for name, loss in exported.items())
