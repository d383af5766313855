"""Datasets and batches; tensorflow-datasets, grain and scikit-learn are imported at first use."""

from genjax.data.loader import Batches as Batches
from genjax.data.sources import Dataset as Dataset
from genjax.data.sources import InMemory as InMemory
from genjax.data.sources import load_dataset as load_dataset
from genjax.data.transforms import to_float as to_float
from genjax.data.transforms import to_uint8 as to_uint8
