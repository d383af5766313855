"""Datasets and batches; tensorflow-datasets, grain and scikit-learn are imported at first use."""

from genjax.data.dataset import Dataset as Dataset
from genjax.data.dataset import InMemory as InMemory
from genjax.data.folder import load_folder as load_folder
from genjax.data.loader import Batches as Batches
from genjax.data.sources import load_dataset as load_dataset
from genjax.data.transforms import to_float as to_float
from genjax.data.transforms import to_uint8 as to_uint8
