import pytest

from genjax.data import load_dataset


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(scope="session")
def digits(data_dir):
    return load_dataset("digits", data_dir=data_dir)
