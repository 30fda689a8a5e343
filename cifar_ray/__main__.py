"""`cifar-ray VERB …`, the same as `python -m cifar_ray.VERB …`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from cifar_ray import cli

VERBS = {
    "train": "train a model, keep it in the store",
    "tune": "find a better recipe",
    "evaluate": "how good a model is, where it fails, and whether the figures can be trusted",
    "compare": "whether one of two models is better, and where they differ",
    "stats": "what a data set holds: classes, files, duplicates, and what the network sees",
    "finetune": "go on from a model: other classes, other images",
    "find_lr": "suggest a learning rate for your data and network",
    "predict": "say what pictures show: files, folders, millions of them",
    "calibrate": "make a kept model's probabilities honest, and let it abstain",
    "quantize": "add the int8 form of its network to a model, for CPUs",
    "keys": "who may use a server that asks for keys",
    "store": "list, show, promote, roll back, delete, export and import models",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Lists the verbs, or runs one; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: cifar-ray VERB …\n\n" + "\n".join(f"  {verb:10}{text}" for verb, text in VERBS.items()))
        print("\n`cifar-ray VERB --help` says more. Serving: `serve run deployments:app`.")
        return 0
    if arguments[0] not in VERBS:
        print(f"error: no verb {arguments[0]!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module = importlib.import_module({"store": "cifar_ray.store.__main__"}.get(arguments[0], f"cifar_ray.{arguments[0]}"))
    return cli.run(lambda: module.main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
