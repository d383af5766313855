import jax
import pytest

from genjax.diffusion import RectifiedFlow, VarianceExploding, VariancePreservingCosine


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[RectifiedFlow, VariancePreservingCosine, VarianceExploding], ids=lambda p: p.__name__)
def process(request):
    return request.param()
