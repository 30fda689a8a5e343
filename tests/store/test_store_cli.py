"""`python -m cifar_ray.store`: what it prints, and the exit code of each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cifar_ray import cli
from cifar_ray.store import Manifest, ModelStore
from cifar_ray.store.__main__ import main

Weights = dict[str, torch.Tensor]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def filled(store: ModelStore, manifest: Manifest, weights: Weights) -> ModelStore:
    for _ in range(3):
        store.save("pets", manifest, weights)
    store.save("digits", manifest.model_copy(update={"metrics": {}}), weights)
    store.promote("pets", 1)
    store.promote("pets", 2)
    return store


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a subcommand on the test's store: exit code, stdout and stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = cli.run(lambda: main([*argv, "--storage", str(tmp_path)]))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_list_shows_each_version_in_aligned_columns(filled: ModelStore, command: Command) -> None:
    code, out, _ = command("list")
    assert code == 0
    assert out.splitlines() == [
        "name    version  aliases     architecture  test accuracy  data set  created",
        "digits  1        –           small_cnn     –              pets      2025-01-02T03:04:05+00:00",
        "pets    1        previous    small_cnn     90.00 %        pets      2025-01-02T03:04:05+00:00",
        "pets    2        production  small_cnn     90.00 %        pets      2025-01-02T03:04:05+00:00",
        "pets    3        –           small_cnn     90.00 %        pets      2025-01-02T03:04:05+00:00",
    ]


def test_list_as_json_is_for_programs(filled: ModelStore, command: Command) -> None:
    rows = json.loads(command("list", "--json")[1])
    assert [(row["name"], row["version"], row["aliases"], row["test_accuracy"], row["damaged"]) for row in rows] == [
        ("digits", 1, [], None, None),
        ("pets", 1, ["previous"], 0.9, None),
        ("pets", 2, ["production"], 0.9, None),
        ("pets", 3, [], 0.9, None),
    ]


def test_a_damaged_bundle_is_a_line_of_the_list_and_does_not_break_it(filled: ModelStore, command: Command, tmp_path: Path) -> None:
    (tmp_path / "models/pets/2/manifest.json").write_text("{")
    (tmp_path / "models/pets/3/model.safetensors").unlink()
    code, out, err = command("list")
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 7)
    assert [line.split()[3] for line in lines[1:5]] == ["small_cnn", "small_cnn", "damaged", "damaged"]
    assert lines[5].startswith("damaged: bundle pets@2 in ")
    assert "model.safetensors is missing" in lines[6]
    assert "pets@3" in json.loads(command("list", "--json")[1])[3]["damaged"]


def test_an_empty_store_says_how_to_fill_it(command: Command) -> None:
    code, out, _ = command("list")
    assert code == 0
    assert "cifar-ray train" in out
    assert json.loads(command("list", "--json")[1]) == []


def test_show_prints_the_manifest(filled: ModelStore, command: Command) -> None:
    code, out, _ = command("show", "pets")
    assert code == 0
    for line in ("name: pets", "version: 2", "aliases: [production]", "  class_names: [cat, dog]", "  image_size_px: 32"):
        assert line in out.splitlines()
    shown = json.loads(command("show", "pets@3", "--json")[1])
    assert (shown["version"], Manifest.model_validate(shown["manifest"])) == (3, filled.manifest("pets@3"))


def test_show_checks_the_weights(filled: ModelStore, command: Command, tmp_path: Path) -> None:
    (tmp_path / "models/pets/2/model.safetensors").write_bytes(b"torn")
    code, out, err = command("show", "pets")
    assert (code, out) == (2, "")
    assert "pets@2" in err
    assert "sha256" in err


def test_promote_and_rollback_say_what_is_in_production(filled: ModelStore, command: Command) -> None:
    figures = "test accuracy 90.00 %; before, pets@{}: test accuracy 90.00 %; guessing gives 50 %\n"
    assert command("promote", "pets@latest") == (0, "pets@3 is in production, previous version: pets@2\n" + figures.format(2), "")
    assert command("rollback", "pets") == (0, "pets@2 is in production, previous version: pets@3\n" + figures.format(3), "")
    assert command("promote", "digits@1") == (0, "digits@1 is in production\n", "")
    assert filled.aliases("pets") == {"production": 2, "previous": 3}


def test_promote_and_rollback_give_the_accuracy_beside_chance_and_beside_the_model_before(
    store: ModelStore, manifest: Manifest, weights: Weights, command: Command, tmp_path: Path
) -> None:
    counted = {"image_counts": {"test": 100, "val": 50}}
    good = manifest.model_copy(update=counted)
    poor = manifest.model_copy(update=counted | {"metrics": {"test_accuracy": 0.6}})
    other = manifest.model_copy(update=counted | {"metrics": {"val_accuracy": 0.8}, "test_fingerprint": "f" * 64})
    for one in (good, poor, other):
        store.save("pets", one, weights)
    assert command("promote", "pets@1")[1].splitlines()[1:] == ["test accuracy 90.0 % (82.6–94.5 %, 100 pictures); guessing gives 50 %"]
    poor_text, good_text = "60.0 % (50.2–69.1 %, 100 pictures)", "90.0 % (82.6–94.5 %, 100 pictures)"
    warning = "guessing gives 50 %: the model is hardly better than guessing"
    assert command("promote", "pets@2")[1].splitlines()[1:] == [
        f"test accuracy {poor_text}; before, pets@1: test accuracy {good_text}; {warning}"
    ]
    assert command("promote", "pets@2")[1].splitlines()[1:] == [f"test accuracy {poor_text}; {warning}"], "it was there before"
    assert command("rollback", "pets")[1].splitlines()[1:] == [
        f"test accuracy {good_text}; before, pets@2: test accuracy {poor_text}; guessing gives 50 %"
    ]
    assert command("rollback", "pets")[1].splitlines()[1].endswith(warning)
    assert command("promote", "pets@3")[1].splitlines()[1:] == [
        "validation accuracy 80.0 % (67.0–88.8 %, 50 pictures); before, pets@2: "
        f"test accuracy {poor_text}, on its own pictures; guessing gives 50 %"
    ]
    (tmp_path / "models/pets/3/manifest.json").write_text("{")
    assert command("promote", "pets@1") == (
        0,
        f"pets@1 is in production, previous version: pets@3\ntest accuracy {good_text}; guessing gives 50 %\n",
        "",
    )


def test_delete_deletes_one_version_and_force_overrides_an_alias(filled: ModelStore, command: Command) -> None:
    assert command("delete", "pets@3") == (0, "deleted pets@3\n", "")
    assert command("delete", "pets@2")[0] == 2
    assert command("delete", "pets@2", "--force") == (0, "deleted pets@2\n", "")
    assert (filled.versions("pets"), filled.aliases("pets")) == ([1], {"previous": 1})


@pytest.mark.parametrize(
    "argv",
    [
        ["show", "birds"],
        ["show", "pets@9"],
        ["show", "pets@champion"],
        ["show", "../pets"],
        ["promote", "pets"],
        ["promote", "pets@9"],
        ["rollback", "digits"],
        ["rollback", "birds"],
        ["delete", "pets"],
        ["delete", "pets@production"],
        ["delete", "../../etc@1", "--force"],
        ["show"],
        ["frobnicate"],
        ["list", "--frobnicate"],
    ],
)
def test_a_mistake_is_one_line_and_exit_2(filled: ModelStore, command: Command, argv: list[str]) -> None:
    code, out, err = command(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")


def test_the_module_runs_and_reads_the_storage_variable(filled: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_RAY_STORAGE", str(tmp_path))
    shown = subprocess.run([sys.executable, "-m", "cifar_ray.store", "show", "pets@9"], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (2, "", 1)
    assert "Available for pets: 1, 2, 3, production, previous, latest" in shown.stderr


def test_the_command_line_needs_neither_torch_nor_ray() -> None:
    program = "import sys, cifar_ray.store.__main__; print({'torch', 'ray'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"
