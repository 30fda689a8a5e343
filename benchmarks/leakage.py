"""How many CIFAR-10 test images are near-duplicates of training images, and how long does the search take?

    python benchmarks/leakage.py MODEL DATA_DIR [--storage STORAGE]

DATA_DIR holds train/<class>/ and test/<class>/; all training images are searched, including those that the model held out.
"""

import argparse
import os
import time

import torch

from cifar_ray.config import TrainConfig, default_storage
from cifar_ray.data import load_splits
from cifar_ray.evaluation.measures.leakage import find_duplicates
from cifar_ray.evaluation.scoring import embed_all
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import load_model

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("data_dir")
parser.add_argument("--storage", default=default_storage())
arguments = parser.parse_args()

predictor = Predictor(load_model(arguments.model, arguments.storage), engine="torch")
splits = load_splits(TrainConfig(dataset="folder", data_dir=arguments.data_dir, val_fraction=0))
assert splits.test is not None
started_s, started_cpu_s = time.perf_counter(), time.process_time()
embeddings = embed_all(predictor, splits.test.images), embed_all(predictor, splits.train.images)
embedded_s = time.perf_counter() - started_s
found = find_duplicates(splits.test.images, splits.train.images, embeddings)
seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
mirrored = sum(one.mirrored for one in found)
other_class = sum(splits.test.labels[one.query] != splits.train.labels[one.reference] for one in found)
print(f"{len(splits.test):,} × {len(splits.train):,} images, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
print(
    f"{len(found)} duplicates ({100 * (len(found) / len(splits.test)):.2f} %), {mirrored} of them mirrored, {other_class} of another class"
)
print(f"{seconds:.1f} s ({embedded_s:.1f} s of it embedding), {cpu_s:.0f} s of CPU")
