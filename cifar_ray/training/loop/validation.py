"""Evaluate the present weights during training, over all workers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.config import TestTimeAugmentation
from cifar_ray.data.batches.loader import EvaluationLoader
from cifar_ray.inference.engines.features import WithFeatures, with_features
from cifar_ray.metrics.accuracy import Evaluation, Logits
from cifar_ray.models.precision import Precision
from cifar_ray.training.loop.collective import sum_over_workers


@torch.inference_mode()
def evaluate(model: nn.Module, loader: EvaluationLoader, precision: Precision, augmentation: TestTimeAugmentation = "none") -> Evaluation:
    """Compute mean cross-entropy and confusion matrix over the parts of all workers.

    Args:
        model: the network; it is put into evaluation mode.
        loader: this worker's part.
        precision: precision of the forward pass.
        augmentation: test-time augmentation; the logits of its views are averaged.
    """
    model.eval()
    classes = loader.num_classes
    confusion = torch.zeros(classes * classes, dtype=torch.float64, device=precision.device)
    loss = torch.zeros(1, dtype=torch.float64, device=precision.device)
    for inputs, labels in loader:
        with precision.autocast():
            logits = sum(weight * model(view).float() for weight, view in views(inputs, augmentation))
        assert isinstance(logits, Tensor)  # noqa: S101
        loss += F.cross_entropy(logits, labels, reduction="sum").double()
        cells = labels * classes + logits.argmax(1)
        confusion.index_add_(0, cells, torch.ones_like(cells, dtype=confusion.dtype))  # bincount would make the GPU wait
    total = sum_over_workers(torch.cat((loss, confusion))).cpu()
    counts = total[1:].long().view(classes, classes).numpy()
    return Evaluation(float(total[0]) / max(1, int(counts.sum())), counts)


@torch.inference_mode()
def gather_outputs(
    model: nn.Module,
    loader: EvaluationLoader,
    precision: Precision,
    rows: slice,
    count: int,
    augmentation: TestTimeAugmentation = "none",
) -> tuple[Logits, Logits]:
    """Gather logits and features of a whole split, in its order and equal on all workers.

    Returns:
        Logits, float32 `[count, C]`, and features, float32 `[count, D]`; D is 0 if the network does not end in a linear layer.

    Args:
        model: the network; it is put into evaluation mode.
        loader: this worker's part.
        precision: precision of the forward pass.
        rows: position of this part in the split.
        count: number of images in the split.
        augmentation: test-time augmentation; the logits and features of its views are averaged.
    """
    model.eval()
    network, classes = with_features(model), loader.num_classes
    width = network.width if isinstance(network, WithFeatures) else 0
    gathered = torch.zeros(count, classes + width, device=precision.device)
    mine, done = gathered[rows], 0
    for inputs, _ in loader:
        with precision.autocast():
            for weight, view in views(inputs, augmentation):
                outputs = network(view)
                both = torch.cat([one.float() for one in outputs], dim=1) if width else outputs
                mine[done : done + len(inputs)] += weight * both
        done += len(inputs)
    result: Logits = sum_over_workers(gathered).cpu().numpy()
    return result[:, :classes], result[:, classes:]


def views(inputs: Tensor, augmentation: TestTimeAugmentation) -> list[tuple[float, Tensor]]:
    """Views of a batch for test-time augmentation (airbench, arXiv 2404.00498, section 3.5), each as `(weight, view)`.

    Args:
        inputs: normalised, `[N, 3, H, W]`.
        augmentation: `mirror` adds the mirror image; `mirror_shift` also adds both shifted by one pixel up-left and down-right.
    """
    if augmentation == "none":
        return [(1.0, inputs)]
    if augmentation == "mirror":
        return [(0.5, inputs), (0.5, inputs.flip(3))]
    height, width = inputs.shape[2:]
    padded = F.pad(inputs, (1, 1, 1, 1), "reflect")
    moved = [padded[:, :, top : top + height, top : top + width] for top in (0, 2)]
    weighted = [(0.5, inputs), *((0.25, view) for view in moved)]
    return [(weight / 2, side) for weight, view in weighted for side in (view, view.flip(3))]
