import pytest

from tests.experiments.launching import SMALL, run_alone, shared_run


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A finished run of the small experiment, trained by a program of its own; not to be written to."""
    return shared_run(tmp_path_factory, "small", *SMALL, launch=run_alone)
