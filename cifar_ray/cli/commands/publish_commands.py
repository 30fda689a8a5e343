"""The subcommands of `store` that publish a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from tyro.conf import Positional

from cifar_ray.cli.commands.stage_commands import StoreCommand
from cifar_ray.errors import ConfigError
from cifar_ray.store.registry import ModelStore

_FOLDER = "hf-folder"
_FORMS = f"{_FOLDER} DIR, mlflow:NAME"


class Card(StoreCommand):
    """Print the card of a model: what it knows, how good it is, where it fails, what it was trained on.

    Each version also has it as card.md and card.html in its folder, as it was when the version was saved.
    """

    reference: Positional[str] = Field(description="NAME, NAME@3, a run or a path")
    format: Literal["markdown", "html"] = Field("markdown", description="markdown, with metadata for Hugging Face's hub, or an HTML page")

    def run(self, store: ModelStore) -> None:
        """Prints the card."""
        from cifar_ray.store.locate import load_model  # imports torch
        from cifar_ray.store.publishing import model_card, model_card_html

        write = model_card if self.format == "markdown" else model_card_html
        print(write(load_model(self.reference, store.storage)), end="")


class Push(StoreCommand):
    """Give a model to others: to a folder for Hugging Face's hub, or to MLflow's registry.

    `hf-folder DIR` writes weights, manifest and card. `mlflow:NAME` adds a version at $MLFLOW_TRACKING_URI, which `mlflow.pyfunc` loads.
    """

    reference: Positional[str] = Field(description="NAME, NAME@3, a run or a path")
    form: Positional[str] = Field(description=_FORMS)
    target: Positional[str | None] = Field(None, description=f"{_FOLDER}: path or URI of the folder")

    def run(self, store: ModelStore) -> None:
        """Write the model to its target; print what was written, and the next command."""
        from cifar_ray.config import resolve_storage
        from cifar_ray.store.locate import load_model  # imports torch

        kind, _, name = self.form.partition(":")
        if kind == "mlflow" and name and self.target is None:
            from cifar_ray.store.mlflow_models import push_to_mlflow

            bundle = load_model(self.reference, store.storage)
            pushed = push_to_mlflow(bundle, name)
            print(f"pushed {bundle.reference} to {pushed}")
            print(f"use    cifar-ray predict {pushed} a.jpg")
            return
        if self.form != _FOLDER or self.target is None:
            raise ConfigError(f"{self.form!r} is not a form to push. Available: {_FORMS}")
        from cifar_ray.store.publishing import write_folder

        bundle = load_model(self.reference, store.storage)
        names = write_folder(bundle, resolve_storage(self.target))
        print(f"wrote  {self.target}: {bundle.reference}, {', '.join(names)}")
        print(f"upload hf upload USER/{bundle.name} {self.target}")
