"""A record of a search as one leaves it: trials that ended in every way."""

import numpy as np
import pytest

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.recipes import digits
from cifar_ray.tuning.record import Record, Trial
from cifar_ray.tuning.space import SearchSpace, parse_space

SPACE = {
    "optimizer.lr": {"loguniform": [1e-4, 1e-1]},
    "label_smoothing": {"uniform": [0.0, 0.3]},
    "augmentation.translate_px": {"choice": [0, 1, 2]},
}


def report(epoch: int, accuracy: float) -> dict:
    return {
        "epoch": epoch,
        "train_loss": 1.0 / epoch,
        "train_accuracy": accuracy,
        "val_loss": 1 - accuracy,
        "val_accuracy": accuracy,
        "learning_rate": 0.1,
        "seconds": 2.0,
        "images_per_s": 500.0,
        "improved": True,
    }


@pytest.fixture
def fixed(tmp_path) -> TrainConfig:
    return parse_config(TrainConfig, digits().model_dump() | {"storage": str(tmp_path), "epochs": 6})


@pytest.fixture
def space(fixed: TrainConfig) -> SearchSpace:
    return parse_space(SPACE, fixed)


@pytest.fixture
def record() -> Record:
    """Accuracy rises with the learning rate; the others do not matter."""
    record = Record("val_accuracy", max_epochs=6, num_samples=14)
    rng = np.random.default_rng(0)
    for number in range(1, 13):
        lr = 10 ** rng.uniform(-4, -1)
        parameters = {"optimizer.lr": lr, "label_smoothing": rng.uniform(0, 0.3), "augmentation.translate_px": int(rng.integers(3))}
        trial = Trial(number, f"id{number}", f"id{number}", parameters, "finished" if number % 3 == 0 else "stopped")
        epochs = 6 if trial.status == "finished" else 2
        for epoch in range(1, epochs + 1):
            trial.add(report(epoch, (lr * 10) ** 0.2 * epoch / 7))
        record.trials.append(trial)
    record.trials.append(Trial(13, "id13", "id13", record.trials[0].parameters, "diverged", "the loss became nan in epoch 2"))
    record.trials[-1].add(report(1, 0.999))
    record.trials.append(Trial(14, "id14", "id14", record.trials[1].parameters, "failed", "RuntimeError: out of memory"))
    record.ended = True
    return record
