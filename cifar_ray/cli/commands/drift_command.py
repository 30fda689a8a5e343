"""The verb `drift`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import tyro
from pydantic import Field
from tyro.conf import FlagCreatePairsOff, Positional

from cifar_ray.cli.commands.storage_command import StorageCommand

ALARM = 1  # exit code

_HEADINGS = ("", "then → now", "distance", "p-value", "")


class DriftCommand(StorageCommand):
    """Tell whether the pictures that a model is asked about have changed since it began to answer.

    Compares its recent answers with its first 1,000. Exit code 1 if they have changed, so that a job can send a message.
    """

    reference: Positional[str] = Field(description="NAME (its production version) or NAME@3")
    as_json: Annotated[FlagCreatePairsOff[bool], tyro.conf.arg(name="json")] = Field(False, description="print JSON")

    def run(self) -> int:
        """Prints the comparison; returns the exit code."""
        from cifar_ray.drift.detection import RECENT_PICTURES, REFERENCE_PICTURES, detect
        from cifar_ray.drift.windows import read_windows
        from cifar_ray.store import ModelStore

        store = ModelStore(self.storage)
        name, version = store.resolve(self.reference)
        drift = detect(read_windows(store.storage, f"{name}@{version}"))
        if self.as_json:
            print(json.dumps({"model": f"{name}@{version}", "drift": drift.is_alarm} | asdict(drift), indent=2))
            return ALARM if drift.is_alarm else 0
        if not drift.shifts:
            missing = f"{REFERENCE_PICTURES:,} first and {RECENT_PICTURES:,} recent pictures are compared"
            print(f"{name}@{version} has answered {drift.reference + drift.recent:,} pictures; {missing}, so wait for more")
            return 0
        from cifar_ray.cli.output.terminal import print_table

        print(f"{name}@{version}: {drift.recent:,} recent pictures beside the first {drift.reference:,}")
        rows = [
            (one.figure, one.text, f"{one.distance:.3f}", f"{one.p_value:.2g}", "changed" if one.is_alarm else "") for one in drift.shifts
        ]
        print_table(rows, _HEADINGS)
        print(f"look   cifar-ray review captures{self.storage_flag}" if drift.is_alarm else "The pictures have not changed.")
        return ALARM if drift.is_alarm else 0
