"""How many label errors of CIFAR-10's test images that people confirmed (Northcutt et al. 2021) does `check_labels` list?

    python -m benchmarks.labels published --data-dir DIR --votes cifar10_mturk.json [--model NAME --storage DIR]

The votes are `mturk/cifar10_mturk.json` of github.com/cleanlab/label-errors. Confident learning had listed 275 test images. Each was shown
to five people, who chose between its label, another label, both and neither. The label is wrong if fewer than three people chose it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import DatasetSplits, load_splits
from cifar_ray.data.task_progress import no_progress
from cifar_ray.evaluation.label_check.confident_learning import wrong_labels
from cifar_ray.evaluation.label_check.labelled_pictures import LabelledPictures
from cifar_ray.evaluation.label_check.out_of_fold import predict_out_of_fold
from cifar_ray.inference.predictor import Predictor
from cifar_ray.recipes import get_recipe
from cifar_ray.store import load_model

ENLARGED_PX = 224  # size to which check_labels enlarges small pictures for a network that was pretrained on photographs
MAJORITY = 3


def compare_with_published(data_dir: str, votes: Path, model: str | None = None, storage: str = "storage") -> None:
    """Print how many of the confirmed errors are listed, and at which place in the list.

    Args:
        data_dir: folder of the files of CIFAR-10.
        votes: the published votes.
        model: a model trained on the training images, whose features are used; default: the pretrained network.
        storage: storage of the model.
    """
    prepare_process()
    predictor = None if model is None else Predictor(load_model(model, storage), torch.device("cpu"))
    size_px = ENLARGED_PX if predictor is None else predictor.manifest.image_size_px
    values = get_recipe("photos").model_dump() | {"method": "probe", "val_fraction": 0.0, "test_fraction": 0.0, "dataset": "cifar10"}
    config = parse_config(TrainConfig, values | {"data_dir": data_dir, "image_size": 32})
    test = load_splits(config).test
    assert test is not None
    pictures = LabelledPictures(DatasetSplits("cifar10-test", test, None, None), size_px)
    predicted = predict_out_of_fold(pictures, config.model_copy(update={"image_size": size_px}), predictor, no_progress)
    listed = wrong_labels(pictures.labels, predicted.probabilities)

    candidates = json.loads(votes.read_text())
    assert all(test.labels[one["id"]] == one["given_original_label"] for one in candidates), "the votes are about other images"
    confirmed = {one["id"] for one in candidates if one["mturk"]["given"] < MAJORITY}
    refuted = {one["id"] for one in candidates} - confirmed
    accuracy = (predicted.probabilities.argmax(axis=1) == pictures.labels).mean()
    print(f"cross-validation predicts {100 * accuracy:.1f} % of the labels; {len(listed)} listed")
    for most in (50, 100, 200, 500, len(listed)):
        first = {int(row) for row in listed[:most]}
        print(
            f"among the first {most}: {len(first & confirmed)} of {len(confirmed)} confirmed errors, "
            f"{len(first & refuted)} of {len(refuted)} labels that people confirmed, {len(first - confirmed - refuted)} not voted on"
        )
    ranks = np.flatnonzero(np.isin(listed, sorted(confirmed))) + 1
    print(f"median place of a confirmed error in the list: {np.median(ranks):.0f}")
