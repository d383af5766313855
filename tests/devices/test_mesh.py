import pytest

from genjax.devices import make_mesh


def test_minus_one_takes_all_devices():
    assert dict(make_mesh({"data": -1}, 8).shape) == {"data": 1}
    assert dict(make_mesh({"data": 1, "fsdp": -1}, 8).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"data": 2}, "needs 2 devices and this machine has 1; set config.mesh"),
        ({"data": 2, "fsdp": -1}, "needs a multiple of 2 devices"),
        ({"data": -1, "fsdp": -1}, "one −1 at most"),
        ({"data": 0}, "must be positive"),
    ],
)
def test_impossible_meshes(axes, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(axes, 8)
