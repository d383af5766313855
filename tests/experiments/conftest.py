import pytest

from tests.experiments.launching import SMALL, run_alone, shared_run


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Return a finished run of the small experiment, of its own program. Do not change it."""
    return shared_run(tmp_path_factory, "small", *SMALL, launch=run_alone)
