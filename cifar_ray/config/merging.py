"""Override settings with other settings, before they are validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_settings(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `values` in which `changes` override keys; nested dictionaries are merged key by key."""
    merged = dict(values)
    for key, change in changes.items():
        both_mappings = isinstance(change, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_settings(merged[key], change) if both_mappings else change
    return merged
