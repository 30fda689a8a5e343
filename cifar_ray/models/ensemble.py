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
        scales: several labels per picture: slope and offset of each class of each member, `[members, 2, classes]`; then probabilities are
            sigmoids, and so is what the ensemble's logits stand for.
    """

    normalizations: Tensor
    scales: Tensor | None

    def __init__(
        self,
        members: Sequence[nn.Module],
        normalizations: Tensor,
        temperatures: Sequence[float],
        scales: Sequence[Sequence[Sequence[float]]] | None = None,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.temperatures = tuple(temperatures)
        self.register_buffer("normalizations", normalizations)
        self.register_buffer("scales", None if scales is None else torch.tensor(scales), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 `[N, num_classes]`: their softmax is the mean probability, their logsumexp the mean of the members' logsumexp.

        The softmax leaves one degree of freedom; the logsumexp fixes it, so that `familiarity.energy` is the mean of the members'.
        """
        if self.scales is not None:
            sigmoids = [
                torch.sigmoid(logits * slope + offset) for logits, (slope, offset) in zip(self._logits(images), self.scales, strict=True)
            ]
            return torch.logit(torch.stack(sigmoids).mean(dim=0), eps=torch.finfo(torch.float32).eps)
        probabilities, energies = [], []
        for logits, temperature in zip(self._logits(images), self.temperatures, strict=True):
            probabilities.append(torch.softmax(logits / temperature, dim=1))
            energies.append(torch.logsumexp(logits, dim=1, keepdim=True))
        mean = torch.stack(probabilities).mean(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        return mean.log() + torch.stack(energies).mean(dim=0)

    def _logits(self, images: Tensor) -> Iterator[Tensor]:
        """Logits of each member, float32 `[N, num_classes]`."""
        for member, (scale, shift) in zip(self.members, self.normalizations, strict=True):
            inputs = images * scale.view(3, 1, 1).to(images.dtype) + shift.view(3, 1, 1).to(images.dtype)
            yield member(inputs).float()


def leaves(network: nn.Module) -> Iterator[nn.Module]:
    """The networks of which an ensemble consists, also inside ensembles; the network itself if it is none."""
    if isinstance(network, Ensemble):
        for member in network.members:
            yield from leaves(member)
    else:
        yield network
