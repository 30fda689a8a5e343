"""Are a model's probabilities honest, and does it notice pictures of other things?

    python benchmarks/trust.py MODEL [--storage STORAGE] [--data-dir DIR] [--cifar100 DIR]

MODEL is fitted anew on its validation images, and measured on its test images and on pictures of other things: how well each of several
scores tells them apart (AUROC), and the share that is answered at the threshold that answers 95 % of validation. `--cifar100` says where
that data set lies; the other pictures are drawn here or come with scikit-learn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.special import log_softmax
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from cifar_ray.config import TrainConfig, default_storage
from cifar_ray.config.data_choice import DataChoice
from cifar_ray.data import load_splits
from cifar_ray.data.batches.transforms import normalize
from cifar_ray.evaluation.selection import select
from cifar_ray.inference.explain import explain
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.accuracy import evaluate_logits, softmax
from cifar_ray.metrics.familiarity import energy as familiarity
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import load_model

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Score = Callable[[Floats, Floats], Floats]

COUNT = 2000
NEIGHBOURS = 50
BATCH = 250


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--data-dir")
    parser.add_argument("--cifar100")
    options = parser.parse_args()
    bundle = load_model(options.model, options.storage)
    train, val, test = (
        select(bundle.manifest, DataChoice(data_dir=options.data_dir, split=split)).images for split in ("train", "val", "test")
    )
    predictor = Predictor(bundle, engine="torch")
    seen = {name: run(predictor, part.images) for name, part in (("train", train), ("val", val), ("test", test))}

    trust = Trust.fit(seen["val"][0], val.labels)
    logits = seen["test"][0]
    print(f"{bundle.reference}, {predictor.precision.name}: {len(train):,} train, {len(val):,} val, {len(test):,} test; {trust}")
    print(trust.describe(trust.metrics(logits, test.labels)))
    print(f"loss {evaluate_logits(logits, test.labels).loss:.4f} → {evaluate_logits(logits, test.labels, trust.temperature).loss:.4f}")
    unsure, right = trust.abstains(logits), logits.argmax(1) == test.labels
    print(f"accuracy {right.mean():.4f}; of those answered {right[~unsure].mean():.4f}, of the rest {right[unsure].mean():.4f}")

    strange = {name: run(predictor, images) for name, images in other_things(train.image_size_px, options.cifar100).items()}
    print("\nAUROC and, below, the share answered")
    print(" " * 22, *(f"{name:>9}" for name in (*strange, "mean", "test")))
    for name, score in scores(*seen["train"], train.labels, trust.temperature).items():
        known, threshold = score(*seen["test"]), np.quantile(score(*seen["val"]), 0.05, method="lower")
        values = [score(*found) for found in strange.values()]
        areas = [roc_auc_score([True] * len(known) + [False] * len(one), np.concatenate([known, one])) for one in values]
        shares = [float((one >= threshold).mean()) for one in values]
        print(f"{name:22}", *(f"{value:9.3f}" for value in (*areas, np.mean(areas))))
        print(" " * 22, *(f"{value:9.3f}" for value in (*shares, np.mean(shares), (known >= threshold).mean())), flush=True)

    print("\nby what computes, at the threshold fitted above: share of the test images answered, calibration error")
    for engine, precision in (("torch", "bf16"), ("torch", "fp32"), ("openvino", "bf16"), ("openvino", "fp32")):
        other = Predictor(bundle, "cpu", precision, engine)
        answers = np.concatenate([other.predict(test.images[i : i + BATCH]).logits for i in range(0, len(test), BATCH)])
        figures = trust.metrics(answers, test.labels)
        print(f"{engine:9} {precision}: {1 - figures['test_abstained']:.4f}, {figures['test_ece']:.4f}", flush=True)
    times = []
    for image in test.images[:100]:
        started = time.perf_counter()
        explain(predictor, image)
        times.append(1000 * (time.perf_counter() - started))
    print(f"\nexplain: median {np.median(times):.1f} ms, p90 {np.quantile(times, 0.9):.1f} ms ({torch.get_num_threads()} threads)")


def run(predictor: Predictor, images: Images) -> tuple[Floats, Floats]:
    """Logits `[N, C]`, and what enters the last linear layer `[N, D]`."""
    heads = [module for module in predictor.network.modules() if isinstance(module, torch.nn.Linear)]
    features: list[torch.Tensor] = []
    hook = heads[-1].register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float()))
    logits = []
    manifest, precision = predictor.manifest, predictor.precision
    with torch.inference_mode(), precision.autocast():
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(np.require(images[start : start + BATCH], requirements=["C", "W"]))
            logits.append(predictor.network(normalize(pixels, manifest.channel_mean, manifest.channel_std, precision.dtype)).float())
    hook.remove()
    return torch.cat(logits).numpy(), torch.cat(features).double().numpy()


def scores(logits: Floats, features: Floats, labels: npt.NDArray[np.int64], temperature: float) -> dict[str, Score]:
    """Scores by name, higher for what is known; those of features learn from the training images given."""
    means = np.stack([features[labels == label].mean(0) for label in np.unique(labels)])
    within, overall = np.linalg.pinv(np.cov((features - means[labels]).T)), np.linalg.pinv(np.cov(features.T))
    centre = features.mean(0)
    residual = np.linalg.eigh(np.cov(features.T))[1][:, : features.shape[1] // 2]  # all but the directions of most variance
    alpha = logits.max(1).mean() / np.linalg.norm((features - centre) @ residual, axis=1).mean()
    bank = torch.nn.functional.normalize(torch.from_numpy(features).float())

    def distance(found: Floats, mean: Floats, precision: Floats) -> Floats:
        return np.einsum("nd,nd->n", (found - mean) @ precision, found - mean)

    def mahalanobis(found: Floats) -> Floats:
        return -np.min([distance(found, mean, within) for mean in means], axis=0)

    def neighbours(found: Floats) -> Floats:
        queries = torch.nn.functional.normalize(torch.from_numpy(found).float()).split(500)
        return torch.cat([(query @ bank.T).topk(NEIGHBOURS).values[:, -1] for query in queries]).numpy()

    return {
        "max softmax": lambda z, _: log_softmax(z, 1).max(1),
        "max softmax, calibr.": lambda z, _: log_softmax(z / temperature, 1).max(1),
        "max logit": lambda z, _: z.max(1),
        "energy (taken)": lambda z, _: familiarity(z),
        "energy, calibrated": lambda z, _: familiarity(z / temperature),
        "GEN": lambda z, _: -((softmax(z) * (1 - softmax(z))) ** 0.1).sum(1),
        "spread of logits": lambda z, _: z.std(1),
        "Mahalanobis": lambda _, f: mahalanobis(f),
        "relative Mahalanobis": lambda _, f: mahalanobis(f) + distance(f, centre, overall),
        f"{NEIGHBOURS}th neighbour": lambda _, f: neighbours(f),
        "ViM": lambda z, f: familiarity(z) - alpha * np.linalg.norm((f - centre) @ residual, axis=1),
        "norm of features": lambda _, f: np.linalg.norm(f, axis=1),
        "energy × norm": lambda z, f: familiarity(z) * np.linalg.norm(f, axis=1),
    }


def other_things(size_px: int, cifar100: str | None) -> dict[str, Images]:
    """Pictures of none of the classes, uint8 `[N, S, S, 3]`, by kind."""
    rng = np.random.default_rng(0)
    square = (COUNT, size_px, size_px, 3)
    ramp = np.linspace(0, 1, size_px)
    weights = np.stack([1 - ramp, ramp])
    found = {
        "digits": load_splits(TrainConfig(dataset="digits", image_size=size_px, val_fraction=0, test_fraction=0)).train.images,
        "uniform": rng.integers(0, 256, square, dtype=np.uint8),
        "gaussian": rng.normal(127.5, 64, square).clip(0, 255).astype(np.uint8),
        "flat": np.broadcast_to(rng.integers(0, 256, (COUNT, 1, 1, 3), dtype=np.uint8), square),
        "gradients": np.einsum("nijc,iy,jx->nyxc", rng.integers(0, 256, (COUNT, 2, 2, 3)), weights, weights).astype(np.uint8),
        "stripes": stripes(rng, size_px),
        "text": np.stack([text(rng, size_px) for _ in range(COUNT)]),
        "photos": photos(rng, size_px),
    }
    if cifar100:
        config = TrainConfig(dataset="cifar100", data_dir=cifar100, image_size=size_px)
        hundred = load_splits(config).test
        assert hundred is not None
        found["cifar100"] = hundred.images
    return found


def stripes(rng: np.random.Generator, size_px: int) -> Images:
    """As the tests draw them: horizontal, vertical or none, on noise."""
    images = rng.integers(0, 120, (COUNT, size_px, size_px, 3))
    images[::3, ::4] += 100
    images[1::3, :, ::4] += 100
    return images.astype(np.uint8)


def text(rng: np.random.Generator, size_px: int) -> Images:
    """Lines of random characters, in two random colours."""
    paper, ink = (tuple(map(int, rng.integers(0, 256, 3))) for _ in range(2))
    picture = Image.new("RGB", (size_px, size_px), paper)
    height_px = int(rng.integers(8, 19))
    for top in range(0, size_px, height_px + 1):
        line = "".join(map(chr, rng.integers(33, 127, 8)))
        ImageDraw.Draw(picture).text((int(rng.integers(-2, 6)), top), line, ink, ImageFont.load_default(height_px))
    return np.asarray(picture)


def photos(rng: np.random.Generator, size_px: int) -> Images:
    """Squares of a temple and of a flower, the two photos that come with scikit-learn."""
    found, both = [], load_sample_images().images
    for _ in range(COUNT):
        photo = both[rng.integers(2)]
        side_px = int(rng.integers(size_px, 400))
        top, left = (int(rng.integers(0, length - side_px + 1)) for length in photo.shape[:2])
        square = Image.fromarray(photo[top : top + side_px, left : left + side_px])
        found.append(np.asarray(square.resize((size_px, size_px), Image.Resampling.BICUBIC)))
    return np.stack(found)


if __name__ == "__main__":
    main()
