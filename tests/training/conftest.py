from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.models.airnet import AirNet


@pytest.fixture
def narrow_airnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network with a tenth of the channels, a fiftieth of the work."""
    monkeypatch.setattr(AirNet.__init__, "__defaults__", ((8, 24, 24), 2))


@pytest.fixture
def few_stripes(stripes: DatasetSplits) -> DatasetSplits:
    """72 training images, where nothing needs to be learnt."""
    return dataclasses.replace(stripes, train=stripes.train.subset(np.arange(72)))
