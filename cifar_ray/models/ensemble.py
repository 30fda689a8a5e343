"""Ensemble: several networks as one, with the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Averages the members' probabilities (deep ensembles: Lakshminarayanan et al. 2017, section 2.4).

    Args:
        members: networks for the same classes and image size.
        normalizations: scale and shift of each member that convert the ensemble's normalisation to its own: `x * scale + shift`,
            float32 `[2, 3]`.
        temperatures: divisor of each member's logits.
    """

    normalizations: Tensor

    def __init__(self, members: Sequence[nn.Module], normalizations: Tensor, temperatures: Sequence[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.temperatures = tuple(temperatures)
        self.register_buffer("normalizations", normalizations)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 `[N, num_classes]`: their softmax is the mean probability, their logsumexp the mean of the members' logsumexp.

        The softmax leaves one degree of freedom; the logsumexp fixes it, so that `familiarity.energy` is the mean of the members'.
        """
        probabilities, energies = [], []
        for member, (scale, shift), temperature in zip(self.members, self.normalizations, self.temperatures, strict=True):
            inputs = images * scale.view(3, 1, 1).to(images.dtype) + shift.view(3, 1, 1).to(images.dtype)
            logits = member(inputs).float()
            probabilities.append(torch.softmax(logits / temperature, dim=1))
            energies.append(torch.logsumexp(logits, dim=1, keepdim=True))
        mean = torch.stack(probabilities).mean(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        return mean.log() + torch.stack(energies).mean(dim=0)


def leaves(network: nn.Module) -> Iterator[nn.Module]:
    """The networks of which an ensemble consists, also inside ensembles; the network itself if it is none."""
    if isinstance(network, Ensemble):
        for member in network.members:
            yield from leaves(member)
    else:
        yield network
