"""Data sets, and batches that depend on the seed and the step alone.

tensorflow-datasets, grain and scikit-learn are imported at first use.
"""

from genjax.data.buckets import BucketedBatches as BucketedBatches
from genjax.data.buckets import aspect_buckets as aspect_buckets
from genjax.data.buckets import image_sizes as image_sizes
from genjax.data.buckets import nearest_buckets as nearest_buckets
from genjax.data.buckets import resized_to as resized_to
from genjax.data.buckets import squared as squared
from genjax.data.clip_buckets import BucketedClips as BucketedClips
from genjax.data.clip_buckets import clip_sizes as clip_sizes
from genjax.data.clip_buckets import cut_to as cut_to
from genjax.data.clip_buckets import nearest_clip_buckets as nearest_clip_buckets
from genjax.data.dataset import Dataset as Dataset
from genjax.data.dataset import InMemory as InMemory
from genjax.data.loader import Batches as Batches
from genjax.data.loader import reading_rate as reading_rate
from genjax.data.packed_clips import PackedClips as PackedClips
from genjax.data.packed_clips import RowFormat as RowFormat
from genjax.data.sets.animated_emoji import load_animated_emoji as load_animated_emoji
from genjax.data.sets.clips import load_clips as load_clips
from genjax.data.sets.folder import load_folder as load_folder
from genjax.data.sets.sound_folder import load_sound_folder as load_sound_folder
from genjax.data.sources import load_dataset as load_dataset
from genjax.data.transforms import center_crop as center_crop
from genjax.data.transforms import compose as compose
from genjax.data.transforms import flip_example as flip_example
from genjax.data.transforms import flip_images as flip_images
from genjax.data.transforms import random_crop as random_crop
from genjax.data.transforms import resize as resize
from genjax.data.transforms import sound_to_float as sound_to_float
from genjax.data.transforms import sound_to_int16 as sound_to_int16
from genjax.data.transforms import to_float as to_float
from genjax.data.transforms import to_uint8 as to_uint8
