import jaxtyping
import pytest


@pytest.fixture
def own_errors():
    """Switches off jaxtyping's run-time check, which would stop a wrong shape before the library does."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
