from types import SimpleNamespace

import numpy as np

from experiments.evaluation.few_step_pictures import FewStepPictures


def test_a_column_has_one_label_and_one_noise():
    """The teacher gets the labels and the seed of the student's samples."""
    requests = []
    images = np.zeros((5, 8, 8, 1), np.uint8)

    def sample(labels, num_steps):
        requests.append((labels.tolist(), num_steps))
        return images

    def sample_teacher(labels, seed):
        requests.append((labels.tolist(), seed))
        return images, 50

    sampling, functions = SimpleNamespace(seed=7), {"sample_teacher": sample_teacher}
    model = SimpleNamespace(sample=sample, functions=functions, sampling=sampling)
    context = SimpleNamespace(condition=SimpleNamespace(num_rows=3))
    picture = FewStepPictures(context, num_steps=(1, 2), count=5)(model)["few_steps"]
    assert picture.info["rows"] == ["1 step", "2 steps", "teacher, 50 steps"]
    assert requests == [([0, 1, 2, 0, 1], number) for number in (1, 2, 7)]
