"""The documentation: links lead somewhere, examples are run or say why not, and words are plain."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# people read these; the code's messages are in the modules
TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *PAGES,
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
]
# Expressions that their readers had to translate, and what to write instead
FORBIDDEN = {
    r"slip of the pen": "probably a typo",
    r"what a storage bears": "storage guarantees",
    r"\bbesides\b(?! the\b)": "also",
    r"\blikewise\b": "in the same way",
    r"\bwho (?:does|has|wins|sends|asks)\b": "a client that …",
    r"\bof which (?:a|one) (?:line|row)\b": "and logs one line",
    r"\bspoil(?:t|ed|s)?\b": "corrupted",
    r"\bfor ever\b": "forever",
    r"\bgoes on with\b": "continues",
    r"\bwhatever (?:the|its)\b": "independent of",
    r"\bkeeps the model\b": "saves the model",
    r"\d…\d": "an en dash between numbers",
}


def words(path: Path) -> str:
    """The text without code."""
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL))


def anchors(path: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", words(path)):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (path.parent / place).resolve() if place else path
        assert file.exists() or place.startswith("reference/"), f"{path.name}: {target}"
        if anchor and file.suffix == ".md" and file.exists():
            assert anchor in anchors(file), f"{path.name}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_are_fenced_so_that_they_can_be_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^```\n[^`]*\S", re.sub(r"^```\w+\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    outside = re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\n\n    \S", re.sub(r"\n+[0-9*-]+\. .*?(?=\n\S|\Z)", "", outside, flags=re.DOTALL)), (
        "an indented block is not run"
    )
    for reason in re.findall(r"<!--+ skip: next *(.*?) *-->", text):
        assert re.fullmatch(r'"[^"]{10,}"', reason), f"{reason}: give the reason"


def test_every_page_is_on_the_site() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert {path.name for path in PAGES} == {name for name in listed if "/" not in name}
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["theme"]["font"] is False, "fonts come from another host"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_words_are_plain(path: Path) -> None:
    text = words(path)
    found = {match[0]: instead for phrase, instead in FORBIDDEN.items() for match in re.finditer(phrase, text, re.IGNORECASE)}
    assert not found


def test_the_readme_is_short_and_has_the_five_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    for command in (
        "python -m cifar_ray.train --num-workers 4",
        "python -m cifar_ray.tune",
        "serve run deployments:app",
        "curl -F image=@",
        "ray up cluster.yaml",
        "make demo",
        "make test",
    ):
        assert command in readme


def test_no_tracked_file_names_a_registry() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.lock"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in tracked:
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name
