"""Parts are found by their names in a package, by module and name, and by dotted paths."""

import sys
import textwrap

import numpy as np
import pytest

from genjax import parts
from genjax.data import load_dataset
from genjax.diffusion import discrete, samplers
from genjax.models.gans import r3gan
from genjax.models.transformers.dit import DiT

NETWORKS = ("genjax.models.transformers",)
GANS = ("genjax.models.gans",)


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """A package of a user's own, outside the project."""
    package = tmp_path / "own_parts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "things.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            from genjax.data import Dataset, InMemory

            def sampler(denoiser, process, noise, times, *, keys, trajectory, strength=1.0):
                return noise * strength

            def load(split, data_dir):
                images = np.full((3, 2, 2, 1), len(data_dir), np.uint8)
                return Dataset("own", split, InMemory({"image": images}))
            """
        )
    )
    (package / "broken.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_parts"
    for name in [name for name in sys.modules if name.startswith("own_parts")]:
        del sys.modules[name]


def test_names_of_a_package_are_those_of_its_modules():
    assert parts.find("DiT", NETWORKS, "field") is DiT
    assert parts.find("dit.DiT", NETWORKS, "field") is DiT
    assert parts.find("genjax.models.transformers.dit.DiT", (), "field") is DiT
    assert parts.find("euler", ("genjax.diffusion.samplers",), "field") is samplers.euler


def test_a_name_that_several_modules_have_needs_its_module():
    assert parts.find("r3gan.Generator", GANS, "field") is r3gan.Generator
    with pytest.raises(ValueError, match=r"field is 'Generator', which several.* r3gan\.Generator"):
        parts.find("Generator", GANS, "field")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DiTT", r".*\bDiT\b.*my_module\.DiTT"),
        ("genjax.models.transformers.dit.DiTT", r", and the module .*\.dit has no DiTT;.*\bDiT\b"),
        ("dit.DiTT", r", and the module .*\.dit has no DiTT;.*\bDiT\b"),
        ("ditt.DiT", ", and there is no module ditt; did you mean dit\\?"),
        (
            "own.parts.DiT",
            r", and there is no module own\.parts; .*start the command in the folder",
        ),
        ("genjax.nope.DiT", r", and there is no module genjax\.nope; start the command"),
        ("my_missing.DiT", r", and there is no module my_missing; start the command"),
    ],
)
def test_a_wrong_name_is_answered_with_what_is_there(name, words):
    with pytest.raises(ValueError, match=rf"^config\.model\.name is '{name}'{words}"):
        parts.find(name, NETWORKS, "config.model.name")


def test_a_misspelt_module_of_ones_own_is_answered_with_its_name(own_package):
    with pytest.raises(ValueError, match="no module own_part; did you mean own_parts\\?"):
        parts.find("own_part.sampler", NETWORKS, "config.model.name")


def test_what_a_module_imports_is_no_part_of_it():
    with pytest.raises(ValueError, match="field is 'jnp'"):
        parts.find("jnp", NETWORKS, "field")
    assert "_private" not in parts.public(sys.modules["genjax.parts"])


def test_parts_of_ones_own(own_package):
    places, called_with = (
        ("genjax.diffusion.samplers",),
        ("denoiser", "process", "noise", "times", "keys"),
    )
    name = f"{own_package}.things.sampler"
    bound = parts.bind(dict(name=name, strength=3.0), places, "config.sampler", called_with)
    assert bound(None, None, 2.0, None, keys=None, trajectory=False) == 6.0
    with pytest.raises(
        ValueError,
        match=r"config\.sampler\.strenght is set, .* takes .*strength; did you mean 'strength'\?$",
    ):
        parts.bind(dict(name=name, strenght=3.0), places, "config.sampler", called_with)
    with pytest.raises(ValueError, match=r"config\.sampler\.noise is set"):
        parts.bind(dict(name=name, noise=3.0), places, "config.sampler", called_with)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(name="ddim", eta="high"), "eta is 'high'; it must be a number"),
        (dict(name="DiT", num_heads="three"), "num_heads is 'three'; it must be a number"),
        (dict(name="DiT", takes_guidance="false"), "guidance is 'false'; it must be True or False"),
    ],
)
def test_text_is_neither_a_number_nor_a_truth_value(fields, message):
    with pytest.raises(ValueError, match=message):
        parts.bind(fields, (*NETWORKS, "genjax.diffusion.samplers"), "config.part")


def test_one_number_is_not_several():
    """The call would fail in the middle of a program, where it reads the first of them."""

    def function(widths: tuple[float, ...] | None = None, either: float | tuple[float, float] = 1):
        return widths, either

    bound = parts.bind_to(function, dict(widths=[0.1], either=2), (), "config.part")
    assert bound() == ((0.1,), 2)
    with pytest.raises(
        ValueError, match=r"config.part.widths is 0.1; .* several values, as \(0.1,"
    ):
        parts.bind_to(function, dict(widths=0.1), (), "config.part")


def test_a_fault_of_a_module_of_ones_own_is_not_hidden(own_package):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        parts.find(f"{own_package}.broken.thing", (), "field")


def test_a_part_within_a_part():
    process = parts.bind(
        dict(name="Shifted", base=dict(name="RectifiedFlow"), shift=3.0),
        ("genjax.diffusion.processes",),
        "config.process",
    )()
    assert type(process.base).__name__ == "RectifiedFlow"


def test_a_function_is_an_argument_by_its_name_or_with_arguments_of_its_own():
    places = ("genjax.diffusion.discrete.samplers",)
    bind = lambda rate: parts.bind(dict(name="remasking", rate=rate), places, "config.sampler")
    assert bind("rescaled").keywords["rate"] is discrete.rescaled
    bound = bind(dict(name="rescaled", eta=0.5)).keywords["rate"]
    assert bound.func is discrete.rescaled and bound.keywords == {"eta": 0.5}
    for wrong in ("rescale", dict(name="rescale")):
        with pytest.raises(ValueError, match=r"config\.sampler\.rate.* is 'rescale'; .*rescaled"):
            bind(wrong)


def test_a_data_set_of_ones_own(own_package):
    dataset = load_dataset(f"{own_package}.things.load", "train", "four")
    assert dataset.name == "own" and np.all(dataset.source.arrays["image"] == 4)
