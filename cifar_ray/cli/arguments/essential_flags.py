"""The most important flags of the training verbs, by heading, each with an example value; `--help` shows only these flags."""

from __future__ import annotations

from cifar_ray.cli.arguments.help_pages import Essentials

_DATA = {"--data-dir": "photos/", "--dataset": "digits"}
_COMPUTE = {"--num-workers": "4", "--seed": "1"}
_PLACES = {"--save-as": "flowers", "--storage": "s3://bucket/models"}

TRAIN: Essentials = {
    "data": _DATA | {"--val-fraction": "0.2"},
    "model": {"--recipe": "small_cnn", "--model": "timm:convnext_tiny", "--method": "probe"},
    "training": {"--epochs": "20", "--batch-size": "256", "--optimizer.lr": "0.01", "--time-budget": "15m"} | _COMPUTE,
    "run": {"--name": "first-try", "--resume": "first-try", "--config": "my.yaml"} | _PLACES | {"--track": "tensorboard"},
    "lists": {"--list-recipes": "", "--list-models": "timm:convnext*"},
}
TRAIN_EXAMPLES = (
    "cifar-ray train --dataset digits                 built-in pictures; seconds, no download",
    "cifar-ray train --data-dir photos/               your pictures, a folder for each class",
    "cifar-ray train --recipe small_cnn               CIFAR-10 on a laptop",
    "cifar-ray train --resume NAME --epochs 20        train a finished run for longer",
)

FINETUNE: Essentials = {
    "data": _DATA,
    "training": {"--epochs": "5", "--freeze": "backbone", "--rate-factor": "0.03"} | _COMPUTE,
    "run": {"--name": "first-try", "--resume": "first-try"} | _PLACES,
}
FINETUNE_EXAMPLES = (
    "cifar-ray finetune cifar10 --data-dir photos/",
    "cifar-ray finetune cifar10@3 --dataset digits --freeze backbone",
)

TUNE: Essentials = {
    "data": _DATA,
    "search": {
        **{"--recipe": "small_cnn", "--space": "space.yaml", "--num-samples": "16", "--time-budget": "30m"},
        **{"--scheduler": "asha", "--search": "optuna", "--max-concurrent": "2", "--epochs": "20"},
    },
    "result": {"--train-best": "", "--name": "first-search", "--resume": "first-search"} | _PLACES,
    "lists": {"--show-space": ""},
}
TUNE_EXAMPLES = (
    "cifar-ray tune --dataset digits --num-samples 8",
    "cifar-ray tune --recipe small_cnn --time-budget 1h --train-best",
)

FIND_LR: Essentials = {
    "data": _DATA,
    "model": {"--recipe": "small_cnn", "--model": "resnet18", "--config": "my.yaml"},
    "test": {"--steps": "200", "--lowest": "1e-5", "--highest": "10", "--batch-size": "256", "--optimizer.name": "sgd"},
}
FIND_LR_EXAMPLES = ("cifar-ray find_lr --dataset digits", "cifar-ray find_lr --recipe resnet18 --optimizer.name sgd")
