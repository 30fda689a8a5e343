"""A compiled network trains as the plain one does, and compiling leaves no trace in it."""

import pytest
import torch

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError
from cifar_ray.training.loop import compiled
from cifar_ray.training.loop import trainer as trainer_module
from cifar_ray.training.loop.trainer import Trainer

SETTINGS = {
    "model": "airnet",
    "epochs": 3,
    "stem_epochs": 1,
    "batch_size": 50,
    "precision": "fp32",
    "augmentation": {"translate_px": 1},
    "compile": "default",
}


@pytest.fixture
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces a network as any backend would be given it, and generates no code: that would take a minute."""
    monkeypatch.setattr(trainer_module, "compiled", lambda network, mode: torch.compile(network, backend="eager"))


def trainer(splits: DatasetSplits, **changes: object) -> Trainer:
    return Trainer(parse_config(TrainConfig, SETTINGS | changes), splits, torch.device("cpu"), Shard())


def losses(one: Trainer) -> list[float]:
    return [one.train_epoch(epoch, lambda *_: None)[0] for epoch in range(3)]


@pytest.mark.usefixtures("narrow_airnet")
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_a_compiled_network_learns_as_the_plain_one(few_stripes: DatasetSplits, mode: str) -> None:
    sgd = {"optimizer": {"name": "sgd", "lr": 0.05}}  # Muon makes weights of rounding, where a gradient is next to nothing
    fast, plain = (losses(trainer(few_stripes, compile=one, **sgd)) for one in (mode, "none"))
    assert fast == pytest.approx(plain, rel=1e-4)
    assert plain[-1] < 0.99 * plain[0]


@pytest.mark.slow  # tracing imports half of torch
@pytest.mark.usefixtures("narrow_airnet", "eager_backend")
def test_compiling_changes_nothing_of_what_is_trained(few_stripes: DatasetSplits) -> None:
    plain = trainer(few_stripes, compile="none")
    random_state = torch.get_rng_state()
    warm = trainer(few_stripes)
    expected = plain.model.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in warm.model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(weight.grad is None for weight in warm.model.parameters())
    assert warm.model.whitening.bias.requires_grad


@pytest.mark.usefixtures("eager_backend")
def test_a_network_that_cannot_be_compiled_is_refused_in_one_line(few_stripes: DatasetSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no compiler found\nand a page of advice")

    monkeypatch.setattr(compiled, "_call", no_compiler)
    with pytest.raises(ConfigError, match=r"^compile: .*no compiler found.*--compile none$"):
        trainer(few_stripes, model="small_cnn", optimizer={"name": "adamw", "lr": 0.01})


def test_each_size_of_piece_is_known(few_stripes: DatasetSplits) -> None:
    loader = trainer(few_stripes, batch_size=50, micro_batch_size=10, compile="none").loader
    met = {len(inputs) for step in loader.epoch(0) for inputs, _ in step.pieces}
    assert set(loader.piece_sizes) == met
