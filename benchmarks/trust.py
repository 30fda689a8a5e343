"""Are a model's probabilities calibrated, and does it recognise pictures of other things (out of distribution)?

    python benchmarks/trust.py MODEL [--storage STORAGE] [--data-dir DIR] [--others NAME=DIR …] [--count N] [--brief]

MODEL is measured on its test images and on pictures of other things: how well its familiarity and several other scores separate the two
(AUROC), and the share of each that is answered at the threshold that answers 95 % of the validation images. `--others cifar100=DIR` adds
the pictures of a folder and its subfolders, except the subfolders in `LEFT_OUT`. The other pictures are drawn here or come with
scikit-learn. `--brief` measures only familiarity and energy, at the thresholds that training or `calibrate` fitted; it needs no training
images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

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
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.evaluation.selection import select
from cifar_ray.inference.explain import explain
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.accuracy import evaluate_logits, softmax
from cifar_ray.metrics.familiarity import energy
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Bundle, load_model
from cifar_ray.store.trust_file import read_trust

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Score = Callable[[Floats, Floats], Floats]

COUNT = 2000
NEIGHBOURS = 50
BATCH = 250
LEFT_OUT = ("pickup_truck",)  # a class of CIFAR-100 that shows classes of CIFAR-10 (truck, automobile)


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--data-dir")
    parser.add_argument("--others", nargs="*", default=[])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--brief", action="store_true")
    options = parser.parse_args()
    bundle = load_model(options.model, options.storage)
    others = dict(one.split("=", 1) for one in options.others)
    if options.brief:
        brief(bundle, options.data_dir, others, options.count)
        return
    train, val, test = (
        select(bundle.manifest, DataChoice(data_dir=options.data_dir, split=split)).images for split in ("train", "val", "test")
    )
    predictor = Predictor(bundle, engine="torch")
    seen = {name: run(predictor, part.images) for name, part in (("train", train), ("val", val), ("test", test))}

    trust = Trust.fit(seen["val"][0], val.labels, seen["val"][1])
    logits, features = seen["test"]
    print(f"{bundle.reference}, {predictor.precision.name}: {len(train):,} train, {len(val):,} val, {len(test):,} test; {trust}")
    print(trust.describe(trust.metrics(logits, test.labels, features)))
    print(f"loss {evaluate_logits(logits, test.labels).loss:.4f} → {evaluate_logits(logits, test.labels, trust.temperature).loss:.4f}")
    unsure, right = trust.abstains(logits, features), logits.argmax(1) == test.labels
    print(f"accuracy {right.mean():.4f}; of those answered {right[~unsure].mean():.4f}, of the rest {right[unsure].mean():.4f}")

    strange = {name: run(predictor, images) for name, images in other_things(train.image_size_px, others, options.count).items()}
    print("\nAUROC and, below, the share answered")
    print(" " * 22, *(f"{name:>9}" for name in (*strange, "mean", "test")))
    assert trust.familiarity is not None
    taken = {"familiarity (taken)": trust.familiarity.score}
    for name, score in (taken | scores(*seen["train"], train.labels, trust.temperature)).items():
        known, threshold = score(*seen["test"]), np.quantile(score(*seen["val"]), 0.05, method="lower")
        values = [score(*found) for found in strange.values()]
        areas = [roc_auc_score([True] * len(known) + [False] * len(one), np.concatenate([known, one])) for one in values]
        shares = [float((one >= threshold).mean()) for one in values]
        print(f"{name:22}", *(f"{value:9.3f}" for value in (*areas, np.mean(areas))))
        print(" " * 22, *(f"{value:9.3f}" for value in (*shares, np.mean(shares), (known >= threshold).mean())), flush=True)

    print("\nby what computes, at the threshold fitted above: share of the test images answered, calibration error")
    for engine, precision in (("torch", "bf16"), ("torch", "fp32"), ("openvino", "bf16"), ("openvino", "fp32")):
        other = Predictor(bundle, "cpu", precision, engine)
        answers, found = run(other, test.images)
        figures = trust.metrics(answers, test.labels, found)
        print(f"{engine:9} {precision}: {1 - figures['test_abstained']:.4f}, {figures['test_ece']:.4f}", flush=True)
    times = []
    for image in test.images[:100]:
        started = time.perf_counter()
        explain(predictor, image)
        times.append(1000 * (time.perf_counter() - started))
    print(f"\nexplain: median {np.median(times):.1f} ms, p90 {np.quantile(times, 0.9):.1f} ms ({torch.get_num_threads()} threads)")


def brief(bundle: Bundle, data_dir: str | None, others: dict[str, str], count: int) -> None:
    """Compare the stored familiarity with the energy, for each engine, with the standard deviation over bootstrap samples."""
    trust = read_trust(bundle)
    assert trust.familiarity is not None, "train the model again, or calibrate it"
    try:
        test = select(bundle.manifest, DataChoice(data_dir=data_dir, split="test")).images
    except DataError:
        test = select(bundle.manifest, DataChoice(data_dir=data_dir, split="val")).images
    strange = other_things(bundle.manifest.image_size_px, others, count)
    strange.pop("digits" if bundle.manifest.dataset_name == "digits" else "", None)
    engines = [("torch", "auto"), ("openvino", "bf16"), ("openvino", "fp32")]
    for engine, precision in engines + [("openvino-int8", "auto")] * (bundle.manifest.quantization is not None):
        try:
            predictor = Predictor(bundle, "cpu", precision, engine)
        except ConfigError as refusal:
            print(f"\n{engine} {precision}: {refusal}")
            continue
        known, *found = (run(predictor, images) for images in (test.images[: 5 * count], *strange.values()))
        print(f"\n{bundle.reference}, {predictor.engine} {predictor.precision.name}: {len(known[0]):,} known pictures")
        print(" " * 22, *(f"{name[:9]:>9}" for name in (*strange, "mean", "known")))
        for name, score, least in (
            ("energy", lambda z, _: energy(z), trust.abstain_threshold),
            ("familiarity", trust.familiarity.score, trust.familiarity.threshold),
        ):
            ours, values = score(*known), [score(*one) for one in found]
            areas = [area(ours, one) for one in values]
            shares = [float((one >= least).mean()) for one in values]
            print(f"{name:22}", *(f"{value:9.3f}" for value in (*areas, np.mean(areas))))
            print(f"{'  ±':22}", *(f"{spread(ours, one):9.3f}" for one in values))
            print(f"{'  answered':22}", *(f"{value:9.3f}" for value in (*shares, np.mean(shares), (ours >= least).mean())), flush=True)
        if engine == "torch":
            started = time.perf_counter()
            trust.abstains(known[0][:64], known[1][:64])
            print(f"familiarity of 64 pictures: {1000 * (time.perf_counter() - started):.2f} ms")


def area(known: Floats, other: Floats) -> float:
    """Area under the ROC curve."""
    return float(roc_auc_score([True] * len(known) + [False] * len(other), np.concatenate([known, other])))


def spread(known: Floats, other: Floats) -> float:
    """Standard deviation of the area over 40 bootstrap samples."""
    rng = np.random.default_rng(0)
    return float(np.std([area(rng.choice(known, len(known)), rng.choice(other, len(other))) for _ in range(40)]))


def run(predictor: Predictor, images: Images) -> tuple[Floats, Floats]:
    """Logits `[N, C]`, and features `[N, D]`."""
    size = max(1, min(BATCH, BATCH * 32**2 // images.shape[1] ** 2 * 8))
    answers = [predictor.predict(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate([one.logits for one in answers]), np.concatenate([one.features for one in answers]).astype(np.float64)


def scores(logits: Floats, features: Floats, labels: npt.NDArray[np.int64], temperature: float) -> dict[str, Score]:
    """Scores by name, higher for known pictures; scores of features are fitted on the given training images."""
    means = np.stack([features[labels == label].mean(0) for label in np.unique(labels)])
    within, overall = np.linalg.pinv(np.cov((features - means[labels]).T)), np.linalg.pinv(np.cov(features.T))
    centre = features.mean(0)
    residual = np.linalg.eigh(np.cov(features.T))[1][:, : features.shape[1] // 2]  # the half of the directions with the least variance
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
        "energy": lambda z, _: energy(z),
        "energy, calibrated": lambda z, _: energy(z / temperature),
        "GEN": lambda z, _: -((softmax(z) * (1 - softmax(z))) ** 0.1).sum(1),
        "spread of logits": lambda z, _: z.std(1),
        "Mahalanobis": lambda _, f: mahalanobis(f),
        "relative Mahalanobis": lambda _, f: mahalanobis(f) + distance(f, centre, overall),
        f"{NEIGHBOURS}th neighbour": lambda _, f: neighbours(f),
        "ViM": lambda z, f: energy(z) - alpha * np.linalg.norm((f - centre) @ residual, axis=1),
        "norm of features": lambda _, f: np.linalg.norm(f, axis=1),
        "energy × norm": lambda z, f: energy(z) * np.linalg.norm(f, axis=1),
    }


def other_things(size_px: int, others: dict[str, str], count: int) -> dict[str, Images]:
    """Pictures that show none of the classes, uint8 `[N, S, S, 3]`, by kind."""
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
    return {name: images[:count] for name, images in found.items()} | {name: folder(path, size_px, count) for name, path in others.items()}


def folder(path: str, size_px: int, count: int) -> Images:
    """Pictures of a folder and its subfolders, drawn at random, squashed to a square."""
    files = sorted(one for one in Path(path).rglob("*") if one.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = [one for one in files if one.parent.name not in LEFT_OUT]
    chosen = np.random.default_rng(0).permutation(len(files))[:count]
    squares = [Image.open(files[row]).convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC) for row in chosen]
    return np.stack([np.asarray(square) for square in squares])


def stripes(rng: np.random.Generator, size_px: int) -> Images:
    """Horizontal stripes, vertical stripes or none, on noise, as the tests draw them."""
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
