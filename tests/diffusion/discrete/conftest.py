import jax
import pytest

from genjax.diffusion import discrete

SCHEDULES = {
    "linear": discrete.Linear(),
    "cosine": discrete.Cosine(),
    "polynomial": discrete.Polynomial(power=1.5),
    "geometric": discrete.Geometric(),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES.keys())
def schedule(request):
    return request.param


@pytest.fixture(params=[discrete.Masked, discrete.Uniform], ids=["masked", "uniform"])
def kind(request):
    return request.param
