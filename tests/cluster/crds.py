"""KubeRay's definitions of its resources, cut down to what deploy/kuberay uses, in `kuberay/crds.json`.

    python -m tests.cluster.crds DIR VERSION    DIR is ray-operator/config/crd/bases of KubeRay's repository at that tag

Whole they are 3 MB, mostly Kubernetes' own description of pods. Of an object that our files have, all names are kept, so that a wrong one
is noticed; what lies below names that they do not have is left out, so cut anew when they use more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
CRDS = Path(__file__).parent / "kuberay/crds.json"
MANIFESTS = {"rayclusters": "raycluster.yaml", "rayjobs": "rayjob.yaml", "rayservices": "rayservice.yaml"}

_RULES = {"type", "enum", "required", "minimum", "maximum", "minLength", "maxLength", "minItems", "pattern", "format", "anyOf"}


def manifest(kind: str) -> dict[str, Any]:
    """One of our files, of `kind` as its definition is named."""
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy/kuberay" / MANIFESTS[kind]).read_text())
    return content


def cut(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """A JSON schema that says of `values` what Kubernetes' `openAPIV3Schema` does, and that unknown names are wrong."""
    kept = {name: rule for name, rule in schema.items() if name in _RULES}
    if properties := schema.get("properties"):
        below = {name: [value[name] for value in values if name in value] for name in properties}
        kept["properties"] = {name: cut(properties[name], found) if found else {} for name, found in below.items()}
        kept["additionalProperties"] = False
    elif isinstance(others := schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = cut(others, [item for value in values for item in value.values()])
    elif "items" in schema:
        kept["items"] = cut(schema["items"], [item for value in values for item in value])
    return kept


def main(folder: Path, version: str) -> None:
    """Writes the file anew."""
    source = (
        f"KubeRay {version}, ray-operator/config/crd/bases; changed: cut down by tests/cluster/crds.py. Apache License 2.0, see LICENSE."
    )
    schemas: dict[str, Any] = {"source": source}
    for kind in MANIFESTS:
        definition = yaml.load((folder / f"ray.io_{kind}.yaml").read_text(), yaml.CSafeLoader)
        (v1,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
        schemas[kind] = cut(v1["schema"]["openAPIV3Schema"], [manifest(kind)])
        schemas[kind]["properties"]["metadata"] = {}  # Kubernetes' own, not described here
    CRDS.write_text(json.dumps(schemas, separators=(",", ":"), sort_keys=True).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
