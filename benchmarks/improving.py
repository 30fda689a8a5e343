"""After a change of the camera, how much of the lost accuracy do reviews recover?

    python benchmarks/improving.py --data-dir DIR [--epochs 4] [--reviews 500] [--weight 10] [--rate-factor 1] [--seeds 1]

DIR holds the original files of CIFAR-10. A model is trained as by `cifar-ray train`. Then the camera changes: every picture is blurred
(Gaussian, 0.8 px) and gets a yellow tint. A server would now capture pictures. Here, the changed camera takes 2,000 training pictures;
those 500 of which the model is least sure are captured and get their true labels as reviews. Then the model is fine-tuned as by
`cifar-ray finetune MODEL --with-reviews --review-weight 10 --rate-factor 1 --epochs 4`. Accuracies are on the 10,000 test pictures, as
each camera takes them.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from cifar_ray import finetune, train
from cifar_ray.captures.capture_files import Capture
from cifar_ray.captures.reviews import Reviews
from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig
from cifar_ray.data import load_splits
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import ModelStore

Pixels = npt.NDArray[np.uint8]

BLUR_PX, TINT = 0.8, (1.1, 1.0, 0.7)
SEEN = 2000  # pictures that the changed camera takes; those of which the model is least sure are reviewed


def changed_camera(images: Pixels) -> Pixels:
    """Pictures as the changed camera takes them, uint8 `[N, H, W, 3]`."""
    blurred = np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(BLUR_PX))) for image in images])
    return np.clip(blurred * np.asarray(TINT) + 0.5, 0, 255).astype(np.uint8)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--reviews", type=int, default=500)
    parser.add_argument("--weight", type=float, default=10.0)
    parser.add_argument("--rate-factor", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    prepare_process(None)
    splits = load_splits(TrainConfig(dataset="cifar10", data_dir=options.data_dir, val_fraction=0))
    assert splits.test is not None
    test = {"usual camera": splits.test.images, "changed camera": changed_camera(splits.test.images)}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as storage:
            flags = ["--storage", storage, "--seed", str(seed), "--data-dir", options.data_dir]
            train.main(["--dataset", "cifar10", "--epochs", str(options.epochs), "--save-as", "camera", *flags])
            before = accuracies(storage, "camera@1", test, splits.test.labels)
            review(storage, splits.train.images, splits.train.labels, splits.train.class_names, options.reviews, seed)
            how = ["--with-reviews", "--review-weight", str(options.weight), "--rate-factor", str(options.rate_factor), "--epochs", "4"]
            finetune.main(["camera", *how, "--storage", storage, "--save-as", "camera"])
            after = accuracies(storage, "camera@latest", test, splits.test.labels)
        lost = before["usual camera"] - before["changed camera"]
        regained = (after["changed camera"] - before["changed camera"]) / lost
        for name in test:
            print(
                f"seed {seed}: {name}: {100 * before[name]:.2f} % before, {100 * after[name]:.2f} % after {options.reviews} reviews",
                flush=True,
            )
        print(f"seed {seed}: the changed camera cost {100 * lost:.2f} %; {100 * regained:.0f} % of it is regained", flush=True)


def accuracies(storage: str, reference: str, test: dict[str, Pixels], labels: npt.NDArray[np.generic]) -> dict[str, float]:
    """Accuracy of a model on the test pictures, by camera, 0–1."""
    predictor = Predictor(ModelStore(storage).load(reference), "cpu")
    return {name: float((predicted(predictor, images) == labels).mean()) for name, images in test.items()}


def predicted(predictor: Predictor, images: Pixels) -> npt.NDArray[np.int64]:
    """Most likely class of each image, int64 `[N]`."""
    return np.concatenate([predictor.predict(images[i : i + 256]).probabilities.argmax(axis=1) for i in range(0, len(images), 256)])


def review(storage: str, images: Pixels, labels: npt.NDArray[np.generic], names: tuple[str, ...], count: int, seed: int) -> None:
    """Take some pictures with the changed camera; capture and label those of which the model is least sure."""
    rows = np.random.default_rng(seed).permutation(len(images))[:SEEN]
    seen = changed_camera(images[rows])
    predictor = Predictor(ModelStore(storage).load("camera@1"), "cpu")
    probabilities = np.concatenate([predictor.predict(seen[i : i + 256]).probabilities for i in range(0, SEEN, 256)])
    unsure = np.argsort(probabilities.max(axis=1))[:count]
    reviews = Reviews(storage)
    for row in unsure.tolist():
        png = io.BytesIO()
        Image.fromarray(seen[row]).save(png, "PNG")
        best = int(probabilities[row].argmax())
        answer = (names[best], float(probabilities[row, best]))
        capture = Capture(
            f"request-{rows[row]}", 0, datetime.now(UTC), "camera@1", *answer, abstains=False, disagrees=False, picture=png.getvalue()
        )
        reviews.add(capture.key, names[int(labels[rows[row]])], "benchmark", capture)


if __name__ == "__main__":
    main()
