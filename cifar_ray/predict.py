"""`python -m cifar_ray.predict MODEL PICTURES…`: predicts the classes of pictures, with a model here, on a cluster, or on a server."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.model_flags import PredictCommand

PROG = "cifar-ray predict"


def main(argv: Sequence[str] | None = None) -> int:
    """Predict pictures; `argv` contains the flags, `None` means the flags of this process.

    Returns:
        0, or 2 if no picture could be read.
    """
    command: PredictCommand = cli.parse(PredictCommand, argv, PROG)
    job = command.job()

    from cifar_ray.inference.batch.pictures import list_pictures

    names = list_pictures(command.pictures, sys.stdin.buffer if sys.stdin else io.BytesIO())

    from cifar_ray.cli.output.prediction_summary import PredictionSummary
    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.inference.batch.prediction_job import predict_pictures

    summary = PredictionSummary()
    with ProgressDisplay() as display:
        time = predict_pictures(job, names, display, summary.add)
    print(summary.text(time))
    if job.out:
        print(f"wrote {job.out}")
    return 0 if summary.sound else cli.EXIT_USER_ERROR


if __name__ == "__main__":
    cli.end(cli.run(main))
