import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics import class_accuracy

LOGITS = np.array([[2.0, -1.0, 0.0], [0.0, 0.5, 0.4], [-3.0, -2.0, -1.0], [1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    "labels, expected", [([0, 1, 2, 0], 1), ([0, 1, 2, 1], 0.75), ([1, 2, 0, 1], 0)]
)
def test_share_of_largest_logits_that_are_the_labels(labels, expected):
    assert class_accuracy(LOGITS, np.array(labels)) == expected
    assert class_accuracy(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(labels)) == expected
    assert class_accuracy(LOGITS, np.array(labels, np.uint8)) == expected


@pytest.mark.usefixtures("unchecked_annotations")
def test_errors_say_what_was_given_and_what_to_do():
    with pytest.raises(
        ValueError, match=r"labels have shape \(3,\); expected \(4,\): pass one per row"
    ):
        class_accuracy(LOGITS, np.zeros(3, int))
    with pytest.raises(
        ValueError, match="labels go from 1 to 3; expected 0 to 2.*number the classes from 0"
    ):
        class_accuracy(LOGITS, np.array([1, 2, 3, 1]))
    with pytest.raises(ValueError, match="labels go from -1 to 2; expected 0 to 2"):
        class_accuracy(LOGITS, np.array([-1, 2, 1, 1]))
    with pytest.raises(ValueError, match=r"logits has shape \(4,\); expected two axes"):
        class_accuracy(LOGITS[:, 0], np.zeros(4, int))
    with pytest.raises(ValueError, match="labels are float64; expected integers"):
        class_accuracy(LOGITS, np.array([0, 1, np.nan, 0]))
    with pytest.raises(ValueError, match="logits holds NaN"):
        class_accuracy(LOGITS * np.nan, np.zeros(4, int))
