import jaxtyping
import pytest


@pytest.fixture
def own_errors():
    """Switch off jaxtyping's run-time check, which would find a wrong shape before the library."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
