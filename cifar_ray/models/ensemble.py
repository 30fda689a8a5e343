"""Ensemble: several networks as one, with the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Averages the members' probabilities (deep ensembles: Lakshminarayanan et al. 2017, arXiv 1612.01474, section 2.4).

    Args:
        members: networks for the same classes and image size.
        normalizations: scale and shift of each member, which convert the ensemble's normalisation to the member's: `x * scale + shift`,
            float32 `[members, 2, 3]`.
        temperatures: divisor of each member's logits; unused with `scales`.
        scales: for several labels per picture: slope and offset of each class by member, `[members, 2, classes]`. Probabilities are then
            sigmoids instead of a softmax; `None` for one class per picture.
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
        """Logits, float32 `[N, num_classes]`, of normalised images, `[N, 3, H, W]`.

        Their softmax is the mean probability, and their logsumexp is the mean of the members' logsumexp. The softmax leaves one degree of
        freedom; the logsumexp fixes it, so that `familiarity.energy` is the mean of the members' energies. For several labels per picture,
        the sigmoid of the logits is the mean probability.
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
    """Yield the members of an ensemble, also those of ensembles within it; any other network yields only itself."""
    if isinstance(network, Ensemble):
        for member in network.members:
            yield from leaves(member)
    else:
        yield network
