import pytest
import torch
from torch import nn

from cifar_ray.config import OptimizerConfig, ScheduleConfig
from cifar_ray.models import create_model
from cifar_ray.training.loop.optimizers import (
    create_optimizers,
    keep_rates_on,
    learning_rate_factor,
    load_state,
    set_learning_rate,
    state_without_rates,
)
from cifar_ray.training.steps.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(64, 216), (216, 64), (48, 48)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix, steps=6).float()
    singular = torch.linalg.svdvals(result)
    assert singular.max() < 1.3
    assert singular.median() > 0.6
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    overlap = (result * (u @ vh)).sum() / (result.norm() * (u @ vh).norm())
    assert overlap > 0.95


def test_muon_moves_a_filter_bank_by_an_orthogonal_step_from_a_fixed_norm() -> None:
    weights = nn.Parameter(torch.randn(8, 4, 3, 3))
    gradient = torch.randn(8, 4, 3, 3)
    weights.grad = gradient.clone()
    start = weights.detach() * (8**0.5 / weights.detach().norm())
    Muon([weights], lr=0.1, momentum=0.6, nesterov=True).step()
    expected = start - 0.1 * orthogonalize(gradient.flatten(1)).float().view(8, 4, 3, 3)
    torch.testing.assert_close(weights.detach(), expected, atol=2e-3, rtol=0)


def test_muon_moves_banks_of_one_shape_together_as_each_alone() -> None:
    banks = [torch.randn(size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate([(8, 4, 3, 3)] * 3 + [(4, 8, 3, 3)])]
    gradients = [torch.randn_like(bank) for bank in banks]

    def moved(chosen: list[int]) -> list[torch.Tensor]:
        parameters = [nn.Parameter(banks[i].clone()) for i in chosen]
        for parameter, i in zip(parameters, chosen, strict=True):
            parameter.grad = gradients[i].clone()
        Muon(parameters, lr=0.1, momentum=0.6, nesterov=True).step()
        return [parameter.detach() for parameter in parameters]

    for together, alone in zip(moved([0, 1, 2, 3]), [moved([i])[0] for i in range(4)], strict=True):
        torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)


def test_muon_takes_the_filters_and_sgd_all_other_trained_weights() -> None:
    model = create_model("airnet", 10, 32)
    sgd, muon = create_optimizers(model, OptimizerConfig(), batch_size=2000)
    matrices, vectors = (group["params"] for group in sgd.param_groups)
    assert [p.ndim for group in muon.param_groups for p in group["params"]] == [4] * 6
    assert len(matrices) == 1
    assert len(vectors) == 7
    assert not any(p is model.whitening.weight for o in (sgd, muon) for group in o.param_groups for p in group["params"])


def test_muons_sgd_rates_grow_with_the_batch_and_decay_by_a_fixed_share_an_example() -> None:
    sgd, _ = create_optimizers(create_model("airnet", 10, 32), OptimizerConfig(), batch_size=2000)
    head, biases = sgd.param_groups
    assert head["lr"] == pytest.approx(0.67 * 2000)
    assert biases["lr"] == pytest.approx(0.053 * 2000)
    assert head["lr"] * head["weight_decay"] == pytest.approx(2e-6 * 2000)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = create_model("small_cnn", 3, 16)
    lr = {"sgd": 0.1, "adamw": 0.01, "muon": 0.05}[name]
    optimizers = create_optimizers(model, OptimizerConfig(name=name, lr=lr, head_lr=0.01, bias_lr=0.001), batch_size=30)
    images, labels = torch.randn(30, 3, 16, 16), torch.arange(30) % 3
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def rates_and_decays(model: nn.Module, config: OptimizerConfig) -> dict[str, tuple[float, float]]:
    (optimizer,) = create_optimizers(model, config, batch_size=30)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_head_norms_and_biases_may_have_rates_of_their_own_and_no_decay(name: str) -> None:
    model = create_model("cnn3", 3, 16, widths=((4,), (4,), (4,)))
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.01, head_factor=10, bias_factor=2, decay_biases=False)
    found = rates_and_decays(model, config)
    assert found["blocks.1.convolutions.0.weight"] == (0.1, 0.01)
    assert found["blocks.1.norms.0.weight"] == found["blocks.1.norms.0.bias"] == found["head.bias"] == (0.2, 0.0)
    assert found["head.weight"] == (1.0, 0.01)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_all_weights_are_one_group_unless_asked_otherwise(name: str) -> None:
    model = create_model("cnn3", 3, 16)
    (optimizer,) = create_optimizers(model, OptimizerConfig(name=name, lr=0.1, weight_decay=0.01), batch_size=30)
    (group,) = optimizer.param_groups
    assert group["params"] == list(model.parameters())


def test_decoupled_decay_takes_a_share_of_the_weights_and_leaves_the_gradient_alone() -> None:
    plain, shrunk = (nn.Linear(4, 3) for _ in range(2))
    shrunk.load_state_dict(plain.state_dict())
    start = plain.weight.detach().clone()
    common = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
    for model, decay in ((plain, {}), (shrunk, {"weight_decay": 0.5, "decoupled_decay": True})):
        (optimizer,) = create_optimizers(nn.Sequential(model), OptimizerConfig(**common | decay), batch_size=30)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(shrunk.weight, plain.weight - 0.1 * 0.5 * start)


@pytest.mark.parametrize(("rule", "rate"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_the_rate_follows_the_batch_by_the_rule_asked_for(name: str, rule: str, rate: float) -> None:
    config = OptimizerConfig(name=name, lr=0.1, lr_scaling=rule, reference_batch_size=64)
    optimizer = create_optimizers(create_model("airnet", 3, 16), config, batch_size=256)[-1]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        (ScheduleConfig(name="linear"), {0: 1, 5: 0.5, 10: 0}),
        (ScheduleConfig(name="linear", final_factor=0.2), {0: 1, 5: 0.6, 10: 0.2}),
        (ScheduleConfig(name="linear", warmup_epochs=2), {0: 0, 1: 0.5, 2: 1, 6: 0.5, 10: 0}),
        (ScheduleConfig(name="cosine"), {0: 1, 5: 0.5, 10: 0}),
        (ScheduleConfig(name="one_cycle"), {0: 0, 1.5: 0.5, 3: 1, 6.5: 0.5, 10: 0}),
        (ScheduleConfig(name="step", step_epochs=4, step_factor=0.1), {0: 1, 3.9: 1, 4: 0.1, 8: 0.01}),
        (ScheduleConfig(name="step", milestones=(3, 7), step_factor=0.5), {0: 1, 2.9: 1, 3: 0.5, 6.9: 0.5, 7: 0.25, 10: 0.25}),
        (ScheduleConfig(name="constant"), {0: 1, 10: 1}),
    ],
)
def test_schedules_pass_through_known_points(config: ScheduleConfig, factors: dict[float, float]) -> None:
    for epoch, factor in factors.items():
        assert learning_rate_factor(config, epoch, 10) == pytest.approx(factor, abs=1e-9)


def test_a_factor_is_always_of_the_peak_rate() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.4)
    for factor in (0.5, 0.25):
        set_learning_rate([optimizer], factor)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * factor)


def reference(weights: torch.Tensor, gradient: torch.Tensor, momentum: torch.Tensor, lr: float) -> torch.Tensor:
    """A step of Muon with Nesterov momentum for one bank, operation by operation as in release 0.1."""
    momentum.mul_(0.6).add_(gradient)
    x = gradient.add(momentum, alpha=0.6).flatten(1).bfloat16()
    x = x / (x.norm() + 1e-7)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(3):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x.T if weights.shape[0] > weights[0].numel() else x
    return weights * (len(weights) ** 0.5 / weights.norm()) - lr * x.view_as(weights).float()


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_banks_of_equal_shape_together_are_updated_as_each_alone(lr: float | torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 8, 3, 3), (16, 8, 3, 3), (32, 2, 1, 1), (8, 16, 3, 3), (16, 8, 3, 3)]
    banks = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    expected, momenta = [bank.detach().clone() for bank in banks], [torch.zeros(shape) for shape in shapes]
    muon = Muon(banks, 0.1, 0.6, nesterov=True)
    muon.param_groups[0]["lr"] = lr
    for _ in range(3):
        for bank in banks:
            bank.grad = torch.randn(bank.shape, generator=generator)
        expected = [reference(old, bank.grad, momentum, 0.1) for old, bank, momentum in zip(expected, banks, momenta, strict=True)]
        muon.step()
    for bank, wanted in zip(banks, expected, strict=True):
        torch.testing.assert_close(bank.detach(), wanted, atol=0.01 * float(wanted.abs().max()), rtol=0)


def test_muon_leaves_everything_as_it_was_after_an_overflow() -> None:
    """As `GradScaler` asks: `found_inf` is a tensor, and nobody reads it on the host."""
    bank = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    muon = Muon([bank], 0.1, 0.6, nesterov=True)
    bank.grad = torch.ones_like(bank)
    muon.step()
    before, momentum = bank.detach().clone(), muon.state[bank]["momentum_buffer"].clone()
    muon.grad_scale, muon.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    bank.grad = torch.full_like(bank, float("inf"))
    muon.step()
    assert torch.equal(bank, before)
    assert torch.equal(muon.state[bank]["momentum_buffer"], momentum)
    muon.found_inf = torch.tensor(0.0)
    bank.grad = torch.full_like(bank, 4.0)
    muon.step()
    assert not torch.equal(bank, before)
    torch.testing.assert_close(muon.state[bank]["momentum_buffer"], 0.6 * momentum + 1)


def test_rates_on_a_device_follow_the_schedule_and_are_not_saved() -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    (sgd,) = [torch.optim.SGD([weights], lr=0.2)]
    keep_rates_on(torch.device("cpu"), [sgd])
    rate = sgd.param_groups[0]["lr"]
    set_learning_rate([sgd], 0.5)
    assert sgd.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1)
    state = state_without_rates(sgd)
    assert state["param_groups"][0]["lr"] == 0.2
    load_state(sgd, state)
    assert sgd.param_groups[0]["lr"] is rate
