"""`python -m cifar_ray.quantize`: adds the int8 form of its network to a model, for CPUs; the new version is not promoted."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.model_flags import QuantizeCommand
from cifar_ray.config import storage_flag

PROG = "cifar-ray quantize"


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize a model; `argv` contains the flags, `None` means the flags of this process."""
    command: QuantizeCommand = cli.parse(QuantizeCommand, argv, PROG)
    cli.show_log()

    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.inference.int8 import quantize_stored  # imports torch, too slow for --help
    from cifar_ray.store import ModelStore

    with ProgressDisplay() as display:
        before, saved = quantize_stored(
            ModelStore(command.storage),
            command.model,
            data_dir=command.data_dir,
            calibration_images=command.calibration_images,
            seed=command.seed,
            tolerance=command.tolerance_points / 100,
            progress=display.start,
        )
    if (record := saved.manifest.quantization) is not None:
        name = "accuracy" if saved.manifest.task == "single-label" else "mAP"
        print(f"{name}  int8 {100 * record.accuracy:.2f} %, fp32 {100 * record.reference_accuracy:.2f} % ({record.measured_on})")
    print(f"saved  {saved.reference}: {before.reference} with its int8 form")
    print(f"promote  cifar-ray store promote {saved.reference}{storage_flag(command.storage)}")
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))
