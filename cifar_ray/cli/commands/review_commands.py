"""The subcommands of `review`."""

from __future__ import annotations

import json
from abc import abstractmethod
from typing import Annotated

import tyro
from pydantic import Field
from tyro.conf import FlagCreatePairsOff, Positional, subcommand

from cifar_ray.cli.commands.storage_command import StorageCommand
from cifar_ray.config import resolve_storage

_HEADINGS = ("key", "when (UTC)", "model", "predicted", "confidence", "why look", "label")


class ReviewCommand(StorageCommand):
    """A subcommand on captured pictures."""

    @abstractmethod
    def run(self) -> None:
        """Runs the subcommand and prints its result."""


class ListCaptures(ReviewCommand):
    """List captured pictures, those first of which the model was unsure. A server captures with capture=0.05."""

    limit: int = Field(20, ge=1, description="number of pictures")
    as_json: Annotated[FlagCreatePairsOff[bool], tyro.conf.arg(name="json")] = Field(False, description="print JSON")

    def run(self) -> None:
        """Prints a line per picture."""
        from cifar_ray.captures.capture_files import Captures, doubt_sort_key
        from cifar_ray.captures.reviews import Reviews

        storage = resolve_storage(self.storage)
        reviews = Reviews(storage).current()
        captures = sorted(Captures(storage).all(), key=lambda capture: (capture.key in reviews, doubt_sort_key(capture)))
        rows = [
            (
                capture.key,
                capture.at.strftime("%Y-%m-%d %H:%M"),
                capture.model,
                capture.predicted,
                f"{100 * capture.confidence:.1f} %",
                "versions disagree" if capture.disagrees else "none of these" if capture.abstains else "",
                reviews[capture.key].label if capture.key in reviews else "",
            )
            for capture in captures[: self.limit]
        ]
        if self.as_json:
            print(json.dumps([dict(zip(_HEADINGS, row, strict=True)) for row in rows], indent=2))
            return
        if not rows:
            print("no picture is captured; start a server with: serve run deployments:app capture=0.05 api_keys=FILE")
            return
        from cifar_ray.cli.output.terminal import print_table

        print_table(rows, _HEADINGS)
        is_open = sum(capture.key not in reviews for capture in captures)
        print(f"{len(captures):,} pictures, {is_open:,} without a label. Label them in the browser, on the server's page")


class Export(ReviewCommand):
    """Write the pictures that people labelled as a table that `train --data-dir` and `finetune --extra-train` read."""

    output: Positional[str] = Field("reviews.parquet", description="path or URI of the Parquet file")
    several_labels: FlagCreatePairsOff[bool] = Field(False, description="the labels of a picture are separated by commas")

    def run(self) -> None:
        """Prints what was written."""
        from cifar_ray.captures.capture_files import Captures
        from cifar_ray.captures.review_table import as_parquet, labelled
        from cifar_ray.captures.reviews import Reviews
        from cifar_ray.errors import DataError
        from cifar_ray.storage import FileTree

        storage = resolve_storage(self.storage)
        reviews = labelled(Captures(storage), Reviews(storage), several_labels=self.several_labels)
        if not reviews:
            raise DataError("no captured picture has a label yet; see cifar-ray review captures")
        files, name = FileTree.of_file(resolve_storage(self.output))
        files.replace(name, as_parquet(reviews, several_labels=self.several_labels))
        print(f"wrote  {self.output}: {len(reviews):,} pictures of {len({review.label for review in reviews}):,} classes")
        print(f"train  cifar-ray finetune MODEL --extra-train {self.output}")


class Delete(ReviewCommand):
    """Delete the pictures of a request, and what people said about them. This cannot be undone."""

    request_id: Positional[str] = Field(description="as in the header X-Request-Id of the answer")

    def run(self) -> None:
        """Prints what was deleted."""
        from cifar_ray.captures.capture_files import Captures
        from cifar_ray.captures.reviews import Reviews
        from cifar_ray.errors import DataError

        storage = resolve_storage(self.storage)
        pictures, reviews = Captures(storage).delete({self.request_id}), Reviews(storage).delete(self.request_id)
        if not pictures and not reviews:
            raise DataError(f"no picture of the request {self.request_id} is stored")
        print(f"deleted {pictures} pictures and {reviews} labels of the request {self.request_id}")


ReviewCommands = (
    Annotated[ListCaptures, subcommand("captures")] | Annotated[Export, subcommand("export")] | Annotated[Delete, subcommand("delete")]
)
