"""The handwritten digits inside scikit-learn, as a tensorflow-datasets builder."""

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 digits of 8×8 pixels in ten classes, for runs without a network.

    `load_dataset("digits")` loads the set. Pixel values 0 … 16 are stored as bytes, `round(value ·
    255 / 16)`. `train` has 1,437 examples and `test` 360. Both have equal class proportions, and a
    fixed seed chooses them.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository (1998), its test part, as distributed with scikit-learn.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8×8 pixels, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        images = np.rint(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        train, test = train_test_split(
            np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
        )
        return {
            "train": self._generate_examples(images, labels, train),
            "test": self._generate_examples(images, labels, test),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray):
        from PIL import Image

        for index in indices:
            # Pillow images, because tensorflow-datasets encodes arrays with TensorFlow.
            yield int(index), {"image": Image.fromarray(images[index]), "label": int(labels[index])}
