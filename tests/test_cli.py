import re
from pathlib import Path

import pytest

from cifar_ray import __main__ as console
from cifar_ray import cli
from cifar_ray.cli import training_flags
from cifar_ray.config import TrainConfig, to_yaml
from cifar_ray.errors import ConfigError, DataError, TrainingError
from cifar_ray.recipes import list_recipes


def parse(*argv: str) -> training_flags.TrainCommand:
    return training_flags.parse_train_command(argv, "python -m cifar_ray.train")


def test_flags_change_the_recipe_and_nothing_else() -> None:
    command = parse("--epochs", "3", "--optimizer.lr", "0.1", "--num-workers", "4")
    assert (command.epochs, command.optimizer.lr, command.num_workers) == (3, 0.1, 4)
    assert (command.batch_size, command.optimizer.momentum) == (2000, 0.6)


def test_a_file_changes_the_recipe_and_a_flag_changes_both(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("recipe: small_cnn\nepochs: 5\noptimizer: {lr: 0.01}\n")
    command = parse("--config", str(path), "--epochs", "7")
    assert (command.model, command.epochs, command.optimizer.lr, command.optimizer.name) == ("small_cnn", 7, 0.01, "adamw")


@pytest.mark.parametrize(
    ("argv", "recipe"),
    [
        ([], "airbench94"),
        (["--dataset", "digits"], "digits"),
        (["--dataset=digits"], "digits"),
        (["--model", "resnet18"], "resnet18"),
        (["--model", "resnet50"], "resnet50_finetune"),
        (["--dataset", "digits", "--model", "airnet96"], "airbench96"),
        (["--recipe", "small_cnn", "--dataset", "digits"], "small_cnn"),
    ],
)
def test_the_recipe_follows_from_data_and_model_unless_named(argv: list[str], recipe: str) -> None:
    assert parse(*argv).recipe == recipe


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--datset", "digits"], "--datset"),
        (["stray"], "^unexpected argument: stray$"),
        (["--epochs", "0"], "^epochs: .*0"),
        (["--epochs", "many"], "^--epochs many: expected a whole number$"),
        (["--optimizer.lr", "high"], r"^--optimizer\.lr high: expected a number$"),
        (["--optimizer.name", "adam"], r"^--optimizer\.name adam: expected one of sgd, adamw, muon$"),
        (["--epochs"], "^--epochs needs a value$"),
        (["--recipe"], "--recipe"),
        (["--epoch", "2"], r"^--epoch: unknown flag\. Did you mean --epochs\?$"),
        (["--zzz"], "^--zzz: unknown flag; --help shows the flags$"),
        (["--lr", "1"], r"^--lr: unknown flag\. Did you mean --optimizer\.lr\?$"),
        (["--recipe", "nope"], "--recipe nope: unknown recipe. Available: .*airbench94"),
        (["--precision", "int8"], "int8.*bf16"),
        (["--optimizer.lr", "-1"], r"^optimizer\.lr: .* \(got -1"),
        (["--optimizer.momentum", "0"], "^nesterov needs momentum"),
        (["--patience", "2", "--val-fraction", "0"], "^patience needs validation images"),
        (["--dataset", "folder"], "^--dataset folder needs --data-dir"),
        (["--dataset", "nope"], "^dataset: .*digits"),
        (["--config", "/no/such.yaml"], "/no/such.yaml"),
        (["--config", "~/no such.yaml"], "~/no such.yaml: cannot be read"),
        (["--config", "~nobody-here/x"], "^~nobody-here/x: no user"),
        (["--storage", ""], "is empty"),
        (["--storage="], "is empty"),
        (["--storage", "~nobody-here/x"], "^~nobody-here/x: no user"),
        (["--storage", "s3:/bucket"], "^s3:/bucket: expected a path, or a URI such as s3://bucket/folder$"),
        (["--storage", "st\udce9"], r"st\\xe9: the path is not valid UTF-8; rename it, or make a link to it"),
        (["--storage", "s3://"], "^s3://: expected a path"),
        (["--data-dir", "~nobody-here/x"], "^~nobody-here/x: no user"),
        (["--data-dir", ""], "is empty"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse(*argv)
    assert "\n" not in str(refused.value)
    assert "│" not in str(refused.value)


@pytest.mark.parametrize(
    "flags", [["--dataset", "digits"], ["--model", "resnet18", "--num-workers", "1:2", "--groups", "a=cat,dog", "b=ship"]]
)
def test_the_config_of_a_run_repeats_it_under_a_new_name(tmp_path: Path, flags: list[str]) -> None:
    original = parse(*flags, "--name", "first", "--storage", str(tmp_path), "--seed", "7")
    file = tmp_path / "runs" / "first" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(to_yaml(TrainConfig.model_validate(original.model_dump(include=set(TrainConfig.model_fields)))))
    for repeated, name in ((parse("--config", str(file)), None), (parse("--config", str(file), "--name", "second"), "second")):
        assert repeated.name == name
        assert TrainConfig.model_fields.keys() <= type(repeated).model_fields.keys()
        assert all(getattr(repeated, field) == getattr(original, field) for field in TrainConfig.model_fields if field != "name")
    copied = tmp_path / "first.yaml"
    copied.write_text(file.read_text())
    assert parse("--config", str(copied)).name == "first"


def test_an_unknown_key_in_a_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("optimizer: {learning_rate: 1}\n")
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: unknown key"):
        parse("--config", str(tmp_path / "my.yaml"))


@pytest.mark.parametrize(("error", "exit_code"), [(DataError("no such folder"), 2), (TrainingError("lost"), 1), (KeyboardInterrupt(), 130)])
def test_errors_become_one_line_and_an_exit_code(error: BaseException, exit_code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert cli.run(fail) == exit_code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_console_command_lists_its_verbs_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main([]) == 0
    shown = capsys.readouterr().out
    assert "train" in shown
    assert "store" in shown
    assert console.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: no verb 'trian'. Did you mean train?\n"


def test_a_wrong_flag_exits_with_2_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["train", "--epochs", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: epochs")


def test_recipes_and_architectures_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["train", "--list-recipes"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^airbench94 +1\.97 M +236 +8  94\.0 % published", shown, re.MULTILINE)
    assert set(shown.split()) > set(list_recipes())
    assert console.main(["train", "--list-models"]) == 0
    assert {"airnet", "resnet18", "small_cnn"} < set(capsys.readouterr().out.split())
