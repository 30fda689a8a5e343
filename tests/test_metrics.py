import numpy as np
import pytest

from cifar_ray.metrics import Evaluation


def test_accuracy_is_the_share_on_the_diagonal() -> None:
    evaluation = Evaluation(loss=1.0, confusion=np.array([[3, 1, 0], [0, 0, 4], [0, 0, 0]]))
    assert evaluation.count == 8
    assert evaluation.accuracy == pytest.approx(3 / 8)
    np.testing.assert_array_equal(evaluation.per_class_accuracy(), [0.75, 0.0, np.nan])
