import jax
import pytest
from mixtures import COEFFICIENTS, Reference

from genjax.diffusion import (
    EDM,
    RectifiedFlow,
    Shifted,
    SubVariancePreserving,
    TrigFlow,
    VarianceExploding,
    VariancePreservingCosine,
    VariancePreservingLinear,
    VariancePreservingScaledLinear,
    VariancePreservingTable,
    linear_betas,
    zero_terminal_snr,
)

PROCESSES = {
    "RectifiedFlow": RectifiedFlow(),
    "VariancePreservingCosine": VariancePreservingCosine(),
    "VariancePreservingLinear": VariancePreservingLinear(),
    "VariancePreservingScaledLinear": VariancePreservingScaledLinear(),
    "VariancePreservingTable": VariancePreservingTable(),
    "VariancePreservingTable, zero_terminal_snr": VariancePreservingTable(
        betas=zero_terminal_snr(linear_betas())
    ),
    "SubVariancePreserving": SubVariancePreserving(),
    "TrigFlow": TrigFlow(),
    "VarianceExploding": VarianceExploding(),
    "EDM": EDM(),
    "Shifted, RectifiedFlow": Shifted(base=RectifiedFlow(), shift=3.0),
    "Shifted, VariancePreservingLinear": Shifted(base=VariancePreservingLinear(), shift=2.0),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(
    params=[RectifiedFlow, VariancePreservingCosine, VarianceExploding], ids=lambda p: p.__name__
)
def process(request):
    return request.param()


@pytest.fixture(params=PROCESSES.values(), ids=PROCESSES.keys())
def every_process(request):
    return request.param


@pytest.fixture
def processes_by_name():
    return PROCESSES


@pytest.fixture(params=COEFFICIENTS, ids=lambda p: type(p).__name__)
def reference(request, float64):
    return Reference(request.param)
