"""How does training scale with the number of workers, and serving with the number of nodes?

    python benchmarks/scale measure [--rounds 4]    measures on this machine for ten minutes; writes results/scale.json
    python benchmarks/scale report                  computes the tables of docs/scale.md, and docs/scale.png, from this file

    python benchmarks/scale coalescing              number of pictures per call of an ingress, by number of model replicas
    python benchmarks/scale check                   checks that docs/scale.md matches results/scale.json

`measure` counts the bytes on the loopback interface, so nothing else should use it meanwhile. As root, you can separate it:
unshare -n sh -c 'ip link set lo up; python benchmarks/scale measure'
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

MEASURED = Path(__file__).parents[1] / "results/scale.json"


def main() -> None:
    """Runs one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "report", "coalescing", "check"])
    parser.add_argument("--only", help="one part, which is networks, all_reduce or a recipe whose steps are taken; the others stay")
    parser.add_argument("--rounds", type=int, default=4, help="steps of each kind, in turn")
    options = parser.parse_args()
    if options.command == "coalescing":
        import coalescing

        coalescing.main()
        return
    if options.command != "measure":
        import report

        report.write(json.loads(MEASURED.read_text()), check=options.command == "check")
        return
    import measure
    import networks

    parts = {"networks": networks.counts, "all_reduce": measure.all_reduce_alone}
    parts |= {recipe: partial(measure.steps, recipe, options.rounds) for recipe in measure.STEP_BATCHES}
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    for name in [options.only] if options.only else parts:
        measured[name] = []
        for row in parts[name]():
            measured[name].append(row)
            MEASURED.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
