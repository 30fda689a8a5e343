"""`python -m cifar_ray.calibrate`: fits a model's temperature and abstain threshold; the new version is not promoted."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.model_flags import CalibrateCommand
from cifar_ray.config import storage_flag

PROG = "cifar-ray calibrate"


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate a model; `argv` contains the flags, `None` means the flags of this process."""
    command: CalibrateCommand = cli.parse(CalibrateCommand, argv, PROG)
    cli.show_log()

    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.evaluation.examinations import calibrate_stored  # imports torch, too slow for --help
    from cifar_ray.store import ModelStore

    store = ModelStore(command.storage)
    with ProgressDisplay() as display:
        before, saved, fitted = calibrate_stored(
            store, command.model, display.start, command.dataset, command.data_dir, command.min_precision
        )
    print(f"trust  {fitted}")
    one_label = before.manifest.task == "single-label"
    what = "abstain threshold" if one_label else "label thresholds"
    if saved is None:
        print(f"same   {before.reference} has this {'temperature' if one_label else 'calibration'} and {what} already; nothing was saved")
        return 0
    rules = [None if one.manifest.rules is None else (one.manifest.rules.slopes, one.manifest.rules.offsets) for one in (before, saved)]
    same = saved.manifest.temperature == before.manifest.temperature and rules[0] == rules[1]
    print(f"saved  {saved.reference}: {before.reference}, {f'same probabilities, new {what}' if same else 'calibrated'}")
    print(f"promote  cifar-ray store promote {saved.reference}{storage_flag(command.storage)}")
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))
