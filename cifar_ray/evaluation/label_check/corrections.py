"""The table of suspects, in which a person enters decisions, and the corrected table of labels that results from the decisions."""

from __future__ import annotations

import csv
import io
import os
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from cifar_ray.config import local_path, printable, resolve_storage
from cifar_ray.data.decoding.picture_files import counted
from cifar_ray.data.listing.layouts import Listing
from cifar_ray.data.listing.tables import list_pictures, naturally
from cifar_ray.data.reading.picture_source import parse_location
from cifar_ray.errors import DataError
from cifar_ray.evaluation.label_check.labelled_pictures import LabelledPictures
from cifar_ray.evaluation.label_check.suspects import Suspect
from cifar_ray.storage import FileTree

KEEP, REMOVE = "keep", "remove"
IMAGE, DECISION = "image", "decision"
_COLUMNS = (IMAGE, "split", "label", "suggested", "probability_of_label", "probability_of_suggested", "reason", "other", DECISION)


def suspects_table(pictures: LabelledPictures, suspects: Sequence[Suspect]) -> bytes:
    """The table of suspects as CSV, the most suspicious first; its column `decision` is empty."""
    names = pictures.class_names
    rows = [
        (
            pictures.name_of(one.row),
            pictures.where(one.row)[0],
            names[pictures.labels[one.row]],
            names[one.suggested],
            f"{one.own_probability:.4f}",
            f"{one.suggested_probability:.4f}",
            one.reason,
            "" if one.other is None else pictures.name_of(one.other),
            "",
        )
        for one in suspects
    ]
    return _to_csv(_COLUMNS, rows)


def read_decisions(path: Path) -> dict[str, tuple[str, str]]:
    """Read decisions: by name of the picture, the decision and its place, `FILE, row N`, for messages.

    A decision is the name of a class, `remove`, or `keep`; an empty decision also keeps the label.

    Raises:
        DataError: if the file cannot be read, lacks a column, has no decision, or names a picture twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; decide on the page of check_labels, and download the file there") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; save it as CSV in UTF-8") from None
    table = csv.DictReader(io.StringIO(text), strict=True, delimiter=";" if ";" in text.partition("\n")[0] else ",")
    missing = [name for name in (IMAGE, DECISION) if name not in (table.fieldnames or ())]
    if missing:
        raise DataError(f"{path}: no column {' or '.join(missing)}; expected the table that check_labels writes, with decisions in it")
    found: dict[str, tuple[str, str]] = {}
    try:
        for number, row in enumerate(table, 1):
            name = unicodedata.normalize("NFC", row[IMAGE] or "")
            if name in found:
                raise DataError(f"{path}, row {number}: {name} comes twice")
            found[name] = (unicodedata.normalize("NFC", (row[DECISION] or "").strip()), f"{path}, row {number}")
    except csv.Error as error:
        raise DataError(f"{path}, after line {table.line_num}: {error}") from None
    if not any(decision for decision, _ in found.values()):
        raise DataError(f"{path}: no decision in it; fill in its column {DECISION}, or decide on the page and download {path.name}")
    return found


def corrected_table(listing: Listing, decisions: Mapping[str, tuple[str, str]], folder: Path) -> tuple[bytes, int, int]:
    """Create the table of all pictures with the corrected labels; no picture is moved or deleted.

    Args:
        listing: the pictures with their present labels.
        decisions: result of `read_decisions`.
        folder: folder of the table; the table contains paths relative to this folder.

    Returns:
        The table as CSV, the number of changed labels, and the number of removed pictures. The columns are image, label and split, and
        weight if pictures have weights, and class_description if classes have descriptions. If the classes are not in the order of
        their names, labels are numbers, and the names are in the column `class_name`.

    Raises:
        DataError: if a decision names an unknown class or picture.
    """
    names = {unicodedata.normalize("NFC", name): name for name in listing.class_names}
    left = dict(decisions)
    rows, changed, removed = [], 0, 0
    numbers = {name: str(number) for number, name in enumerate(listing.class_names)}
    is_numbered = tuple(sorted(listing.class_names, key=naturally)) != listing.class_names
    descriptions = listing.class_descriptions
    has_weights = any(part.weights is not None for part in listing.parts.values())
    for split, part in listing.parts.items():
        for row, number in enumerate(part.labels.tolist()):
            label = listing.class_names[number]
            decision, where = left.pop(unicodedata.normalize("NFC", printable(part.pictures.names[row])), ("", ""))
            if decision == REMOVE and REMOVE not in names:
                removed += 1
                continue
            if decision and not (decision == KEEP and KEEP not in names):
                if decision not in names:
                    expected = ", ".join([*listing.class_names, KEEP, REMOVE])
                    raise DataError(f"{where}: unknown decision {decision!r}; expected one of {expected}")
                changed += names[decision] != label
                label = names[decision]
            image = os.path.relpath(os.fsdecode(part.pictures.path(row)), folder)
            weight = 1.0 if part.weights is None else float(part.weights[row])
            named = (numbers[label], label) if is_numbered else (label,)
            described = [descriptions.get(label, "")] if descriptions else []
            rows.append((image, *named, split, *([f"{weight:g}"] if has_weights else []), *described))
    if left:
        name, (_, where) = next(iter(left.items()))
        raise DataError(f"{where}: {name} is not in {listing.root}; are these decisions for other data?")
    optional = [*(["weight"] if has_weights else []), *(["class_description"] if descriptions else [])]
    columns = ("image", "label", *(["class_name"] if is_numbered else []), "split", *optional)
    return _to_csv(columns, rows), changed, removed


def apply_decisions(data: str, columns: str | None, decisions: str, table: str) -> list[tuple[str, str]]:
    """Write the corrected table, and describe it in rows of `(name, text)` for the user.

    Args:
        data: folder or table of the pictures.
        columns: columns of the table, as in `--columns`.
        decisions: path of the table of decisions.
        table: path of the corrected table; the pictures must be in its folder or below.

    Raises:
        DataError: if the decisions or the pictures cannot be read, a decision is wrong, the table exists already, or the pictures are
            not files in its folder or below.
    """
    path, listing = Path(table), list_pictures(parse_location(resolve_storage(data)), columns)
    if isinstance(listing.root, str) or listing.pictures.spans is not None:
        raise DataError(f"{data}: a table can name files on this machine only, not objects or the content of tars and tables")
    if path.exists():
        raise DataError(f"{path} exists; remove it, or choose another table with --out")
    if not listing.root.resolve().is_relative_to(path.parent.resolve()):
        raise DataError(f"--out {path}: a table has to be in the folder of its pictures or above: {listing.root}")
    content, changed, removed = corrected_table(listing, read_decisions(local_path(decisions)), path.parent)
    tree, name = FileTree.of_file(str(path))
    tree.replace(name, content)
    return [
        ("written", f"{path}: {counted(changed, 'label')} changed, {counted(removed, 'picture')} left out"),
        ("train", f"cifar-ray train --data-dir {shlex.quote(str(path))} --save-as {shlex.quote(listing.name)}"),
    ]


def _to_csv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
