"""The graph of an exported file: from pictures of any size to all fields of a server's prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.inference.engines.conversion import FromPixels
from cifar_ray.inference.engines.features import with_features
from cifar_ray.inference.exporting.resampling import Square
from cifar_ray.metrics.familiarity import NEIGHBOUR
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Manifest


class Probabilities(nn.Module):
    """From logits to probabilities, as in `metrics.trust.Trust.probabilities`.

    Args:
        trust: calibration of the bundle.
    """

    scales: Tensor

    def __init__(self, trust: Trust) -> None:
        super().__init__()
        self.temperature, self.is_multi_label = trust.temperature, trust.rules is not None
        if trust.rules is not None:
            self.register_buffer("scales", torch.tensor([trust.rules.slopes, trust.rules.offsets]))

    def forward(self, logits: Tensor) -> Tensor:
        """Probabilities, float32 `[N, C]`, of logits, float32 `[N, C]`."""
        if self.is_multi_label:
            return torch.sigmoid(logits * self.scales[0] + self.scales[1])
        return torch.softmax(logits / self.temperature, dim=1)


class SquareImageGraph(nn.Module):
    """From square pictures of the network's size to logits and probabilities.

    Args:
        network: the network in evaluation mode.
        manifest: manifest of the network.
        trust: calibration of the network.
    """

    def __init__(self, network: nn.Module, manifest: Manifest, trust: Trust) -> None:
        super().__init__()
        self.from_pixels, self.probabilities = FromPixels(network, manifest), Probabilities(trust)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, float32 `[N, C]`, of images, uint8 `[N, S, S, 3]`."""
        logits = self.from_pixels(images)
        return logits, self.probabilities(logits)


class PredictionGraph(nn.Module):
    """From pictures of any size to the fields of a `Prediction`, and the score from which the model decides to abstain.

    Args:
        network: the network in evaluation mode.
        manifest: manifest of the network.
        trust: calibration, thresholds and known pictures of the model.
    """

    OUTPUTS = ("logits", "probabilities", "labels", "score", "abstains")
    thresholds: Tensor

    def __init__(self, network: nn.Module, manifest: Manifest, trust: Trust) -> None:
        super().__init__()
        self.square = Square(manifest.image_size_px, manifest.resize_policy)
        self.from_pixels = FromPixels(with_features(network), manifest)
        self.probabilities, self.score = Probabilities(trust), _Score(trust)
        self.threshold = score_threshold(trust)
        self.is_multi_label = trust.rules is not None
        if trust.rules is not None:
            self.register_buffer("thresholds", torch.tensor(trust.rules.thresholds))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The `OUTPUTS` for images, uint8 `[N, H, W, 3]`, RGB.

        Returns:
            Logits and probabilities, float32 `[N, C]`, labels that are given, bool `[N, C]`, the score, float32 `[N]`, and whether
            it is below its threshold, so that the model abstains, bool `[N]`.
        """
        outputs = self.from_pixels(self.square(images))
        logits, features = (outputs, None) if isinstance(outputs, Tensor) else outputs
        probabilities = self.probabilities(logits)
        if self.is_multi_label:
            labels = probabilities >= self.thresholds
        else:
            labels = torch.arange(logits.shape[1]) == probabilities.argmax(dim=1, keepdim=True)
        score = self.score(logits, features)
        abstains = torch.zeros_like(score, dtype=torch.bool) if self.threshold is None else score < self.threshold
        return logits, probabilities, labels, score, abstains


def score_threshold(trust: Trust) -> float | None:
    """The score below which the model abstains from a picture; `None` if it never abstains."""
    return trust.abstain_threshold if trust.familiarity is None else trust.familiarity.threshold


class _Score(nn.Module):
    """`metrics.familiarity.Familiarity.score` if the bundle has known pictures, else the energy of the logits."""

    known: Tensor
    centres: Tensor
    spreads: Tensor

    def __init__(self, trust: Trust) -> None:
        super().__init__()
        familiarity = trust.familiarity
        self.is_familiarity = familiarity is not None
        self.first_part = 0 if trust.rules is None else 1  # for several labels, skip the energy
        if familiarity is not None:
            self.register_buffer("known", torch.from_numpy(familiarity.known))
            self.register_buffer("centres", torch.from_numpy(familiarity.centres).float())
            self.register_buffer("spreads", torch.from_numpy(familiarity.spreads).float())

    def forward(self, logits: Tensor, features: Tensor | None) -> Tensor:
        """Score of each picture, float32 `[N]`, lower for less familiar pictures."""
        energy = torch.logsumexp(logits, dim=1)
        if features is None or not self.is_familiarity:
            return energy
        roots = F.normalize(features.sign() * features.abs().sqrt())
        similarity = (roots @ self.known.T).topk(NEIGHBOUR, dim=1).values[:, -1]
        deviations = (torch.stack([energy, similarity], dim=1) - self.centres) / self.spreads
        below: Tensor = torch.linalg.vector_norm(deviations[:, self.first_part :].clamp(max=0), dim=1)
        return -below
