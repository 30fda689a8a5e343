"""Help, version and mistakes of all verbs, as a person sees them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_ray import __main__ as console
from cifar_ray.cli import completion_commands, training_flags
from cifar_ray.cli.arguments.flag_table import flags_of
from cifar_ray.config.version import VERSION

SAVED = Path(__file__).parents[1] / "saved"
VERBS = list(console.VERBS)
SUBCOMMANDS = ["store list", "store import", "keys add", "keys list", "cache clear"]
TRAINING = {
    "train": training_flags.TrainCommand,
    "tune": training_flags.TuneCommand,
    "finetune": training_flags.FinetuneCommand,
    "find_lr": training_flags.FindLrCommand,
}


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints that ends well."""
    try:
        code: object = console.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert not code
    assert captured.err == ""
    return captured.out


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", [*VERBS, *SUBCOMMANDS, *(f"{verb} --help-all" for verb in TRAINING)])
def test_a_help_page_has_no_none_no_placeholder_types_and_fits(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.split()
    page = shown(words if "--help-all" in words else [*words, "--help"], capsys)
    assert page.startswith(f"usage: cifar-ray {' '.join(word for word in words if word != '--help-all')}")
    assert "None" not in page
    assert not re.search(r"\b(STR|INT|FLOAT|BOOL)\b", page)


@pytest.mark.parametrize("verb", TRAINING)
def test_the_first_help_page_is_short_and_the_second_one_complete(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    page, complete = shown([verb, "--help"], capsys), shown([verb, "--help-all"], capsys)
    assert len(page.splitlines()) < 90 < len(complete.splitlines())
    names = [flag.name for flag in flags_of(TRAINING[verb]) if not flag.is_positional]
    assert all(re.search(rf"^  {re.escape(name)}\b", complete, re.MULTILINE) for name in names)
    assert sum(name in page for name in names) < 30
    assert "e.g. --" in page
    assert "\nexamples:\n  cifar-ray" in page


def test_help_shows_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "passes over the training images (default: 12;" in " ".join(shown(["train", "--dataset", "digits", "--help"], capsys).split())


def test_positional_arguments_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, usage in (
        ("predict", "MODEL PICTURES …"),
        ("compare", "A B"),
        ("finetune", "MODEL"),
        ("stats", "[DIR]"),
        ("serve", "[MODEL]"),
    ):
        assert shown([verb, "--help"], capsys).startswith(f"usage: cifar-ray {verb} {usage} [FLAGS]\n")


@pytest.mark.parametrize("arguments", [[], *([verb] for verb in VERBS), ["store", "list"]])
def test_every_verb_tells_the_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert shown([*arguments, "--version"], capsys) == f"cifar-ray {VERSION}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict", "an argument is missing; expected: cifar-ray predict MODEL PICTURES …"),
        ("predict digits", "no pictures given; expected: cifar-ray predict MODEL PICTURES …"),
        ("evaluate --robustness 5", "--robustness: unknown flag. Did you mean --robustness-images?"),
        ("evaluate digits --split tset", "--split tset: expected one of test, val, train, all"),
        ("train --dataset cifar10 --data-dir /no/such", "--data-dir /no/such: folder not found"),
        ("evaluate digits --dataset cifar10 --data-dir /no/such", "--data-dir /no/such: folder not found"),
        ("finetune digits --dataset cifar100 --data-dir=/no/such --storage SAVED", "--data-dir /no/such: folder not found"),
        ("stats --dataset cifar10 --data-dir /no/such", "--data-dir /no/such: folder not found"),
        ("store", "cifar-ray store needs a subcommand. Available: list, show, "),
        ("store lst", "lst: unknown subcommand. Did you mean list?"),
        ("store list --jsn", "--jsn: unknown flag. Did you mean --json?"),
        ("keys add", "an argument is missing; expected: cifar-ray keys add NAME"),
    ],
)
def test_a_mistake_is_one_line_with_what_is_right(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(command.replace("SAVED", str(SAVED)).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_help_lists_and_mistakes_import_nothing_heavy(tmp_path: Path) -> None:
    """The import budget: torch alone takes seconds, and a user tries a flag twenty times an hour."""
    shutil.copytree(SAVED / "models", tmp_path / "models")
    (tmp_path / "keys").touch()
    commands = [
        *([], ["--version"], ["trian"]),
        *([*command.split(), "--help"] for command in sorted([*VERBS, *SUBCOMMANDS], key=lambda command: "store" in command)),
        *(["train", *arguments] for arguments in (["--help-all"], ["--epoch", "3"], ["--model", "resnet19x"], ["--list-recipes"])),
        *(["train", "--list-models"], ["train", "--resume", "nothing", "--storage", str(tmp_path)]),
        *(["store", "list", "--storage", str(tmp_path)], ["keys", "list", "--file", str(tmp_path / "keys")], ["cache", "list"]),
    ]
    program = """
import contextlib, io, sys
from cifar_ray.__main__ import main
for command in eval(sys.argv[1]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(command)
    heavy = {"torch", "ray", "scipy", "sklearn", "matplotlib", "torchvision", "timm", "pandas"} & set(sys.modules)
    assert not heavy, f"{command} imports {heavy}"
    if "--help" in command and "store" not in command:
        assert not {"numpy", "pyarrow", "PIL"} & set(sys.modules), f"{command} imports numpy"
"""
    done = subprocess.run([sys.executable, "-c", program, repr(commands)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_knows_verbs_subcommands_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(completion_commands.commands()) == set(VERBS)
    script = shown(["completion", shell], capsys)
    for word in (*VERBS, "revoke", "rollback", "optimizer.lr", "robustness-images"):
        assert word in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_a_flag_of_a_subcommand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script").write_text(shown(["completion", "bash"], capsys))
    ask = """source ./script
COMP_WORDS=(cifar-ray store export --for) COMP_CWORD=3 COMP_LINE="${COMP_WORDS[*]}" COMP_POINT=${#COMP_LINE}
_tyro_cifar_ray
echo "${COMPREPLY[@]}" """
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "--format"
