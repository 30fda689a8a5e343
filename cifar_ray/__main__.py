"""`cifar-ray VERB …`: the same as `python -m cifar_ray.VERB …`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.config.version import VERSION

VERBS = {
    "train": "train a model and save it to the store",
    "tune": "search for a better recipe",
    "evaluate": "measure a model: accuracy, calibration, robustness, mistakes, cost",
    "compare": "test whether one of two models is better, and show where they differ",
    "stats": "describe a data set: classes, files, duplicates, and what the network sees",
    "check_labels": "find labels that are probably wrong, and write a corrected table",
    "finetune": "fine-tune a model on other classes or images",
    "find_lr": "suggest a learning rate for your data and network",
    "predict": "predict the classes of pictures: files, folders, URIs",
    "calibrate": "calibrate a model that was saved without calibration",
    "quantize": "add an int8 form for CPUs to a model",
    "serve": "serve a model over HTTP",
    "review": "list, export and delete the pictures that a server captured",
    "drift": "tell whether the pictures that a model is asked about have changed",
    "keys": "add, list and revoke the API keys of a server",
    "cache": "list and clear the cache of decoded pictures and features",
    "store": "list, show, promote, try, roll back, delete, export and import models",
    "completion": "print a script that completes verbs and flags in bash, zsh or fish",
    "demo": "train a small model, serve it and send it a picture",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb, or list the verbs if none is given; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"cifar-ray {VERSION}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "--help-all"):
        verbs = "\n".join(f"  {verb:13}{text}" for verb, text in VERBS.items())
        print(f"usage: cifar-ray VERB …\n\n{verbs}\n\nHelp for a verb: cifar-ray VERB --help")
        return 0
    if arguments[0] not in VERBS:
        hints = [f"Did you mean {verb}?" for verb in difflib.get_close_matches(arguments[0], VERBS, 1)]
        print(f"error: no verb {arguments[0]!r}.", *(hints or [f"Available: {', '.join(VERBS)}"]), file=sys.stderr)
        return 2
    package = f".{arguments[0]}.__main__" if arguments[0] in ("store", "drift") else f".{arguments[0]}"
    return cli.run(lambda: int(importlib.import_module(package, "cifar_ray").main(arguments[1:])))


def program() -> None:
    """The console command `cifar-ray`."""
    cli.end(main())


if __name__ == "__main__":
    program()
