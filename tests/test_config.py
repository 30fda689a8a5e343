from pathlib import Path

import pytest

from cifar_ray.config import OptimizerConfig, TrainConfig, parse_config, read_yaml, resolve_storage, to_yaml
from cifar_ray.config.api_keys import write_keys
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"datset": "digits"}, "datset: unknown key"),
        ({"optimizer": {"lrr": 1}}, "optimizer.lrr: unknown key"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr"),
        ({"optimizer": {"momentum": 0}}, "nesterov"),
        ({"val_fraction": 1}, "val_fraction"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"precision": "int8"}, "precision"),
        ({"num_workers": 0}, "num_workers"),
        ({"num_workers": "2:"}, "num_workers: expected a number from 1 to 4096, or two such as 2:8"),
        ({"name": "bad name"}, r"name: use letters, digits, .* \(got 'bad name'\)"),
        ({"data_memory": "4 gigs"}, "data_memory: use auto, or a size such as 500MB or 4GB"),
        ({"checkpoint_every": "often"}, "checkpoint_every: use a number of epochs, or a time such as 30s, 10m or 1h"),
        ({"num_workers": "8:2"}, "num_workers: the minimum comes first"),
        ({"num_workers": "2:8", "batch_size": 7}, r"is smaller than the number of workers \(8\)"),
        ({"name": "../x"}, "name"),
        ({"save_as": "a/b"}, "save_as"),
        ({"seed": -1}, "seed"),
        ({"dataset": "folder"}, "--data-dir"),
        ({"dataset": "digits", "data_dir": "x"}, "data_dir"),
        ({"patience": 2, "val_fraction": 0}, "val_fraction"),
        ({"epochs": 3, "schedule": {"warmup_epochs": 3}}, "warmup_epochs"),
        ({"image_size": 16, "augmentation": {"translate_px": 16}}, "translate_px"),
        ({"num_workers": 4, "batch_size": 3}, "batch_size"),
        ({"augmentation": {"rotate_deg": 181}}, "augmentation.rotate_deg"),
        ({"augmentation": {"brightness": 1.1}}, "augmentation.brightness"),
        ({"augmentation": {"hue": -0.1}}, "augmentation.hue"),
        ({"augmentation": {"erase": 2}}, "augmentation.erase"),
        ({"augmentation": {"mixup": -1}}, "augmentation.mixup"),
        ({"augmentation": {"policy": "trivial"}}, "augmentation.policy"),
        ({"augmentation": {"policy_magnitude": 31}}, "augmentation.policy_magnitude"),
    ],
)
def test_an_impossible_setting_is_refused_in_one_line_that_names_it(values: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=field) as refused:
        parse_config(TrainConfig, values)
    assert "\n" not in str(refused.value)


def test_a_config_survives_yaml(tmp_path: Path) -> None:
    config = parse_config(TrainConfig, {"epochs": 3, "optimizer": {"name": "adamw", "lr": 1e-3}, "storage": str(tmp_path)})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse_config(TrainConfig, read_yaml(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("asked", "kept", "bounds"), [(None, None, None), (3, 3, (3, 3)), ("3", 3, (3, 3)), ("2:8", "2:8", (2, 8)), ("4:4", 4, (4, 4))]
)
def test_a_number_of_workers_may_be_two(asked: object, kept: object, bounds: object, tmp_path: Path) -> None:
    config = parse_config(TrainConfig, {"num_workers": asked})
    assert (config.num_workers, config.worker_range) == (kept, bounds)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse_config(TrainConfig, read_yaml(tmp_path / "config.yaml")).num_workers == kept


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        OptimizerConfig().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\xff"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.yaml") as refused:
        read_yaml(path)
    assert "\n" not in str(refused.value)


def test_a_relative_storage_becomes_absolute_and_a_uri_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_storage("./here/") == str(tmp_path / "here")
    assert resolve_storage("s3://bucket/there/") == "s3://bucket/there"


def test_a_tilde_is_the_home_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("epochs: 3\n")
    write_keys(tmp_path / "keys.txt", [])
    assert resolve_storage("~/here") == str(tmp_path / "here")
    assert read_yaml("~/my.yaml") == {"epochs": 3}
    assert parse_config(ServeConfig, {"api_keys": "~/keys.txt"}).api_keys == tmp_path / "keys.txt"
    with pytest.raises(ConfigError, match="no user of this name"):
        resolve_storage("~nobody-here/x")


def test_storage_comes_from_the_environment_unless_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_RAY_STORAGE", str(tmp_path / "shared"))
    assert TrainConfig().storage == str(tmp_path / "shared")
    assert TrainConfig(storage="/other").storage == "/other"


def test_numbers_in_yaml_are_taken_where_text_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("checkpoint_every: 2\nname: 2024\nsave_as: 7\nnum_workers: 3\n")
    config = parse_config(TrainConfig, read_yaml(path))
    assert (config.checkpoint_every, config.name, config.save_as, config.num_workers) == ("2", "2024", "7", 3)


@pytest.mark.parametrize(("text", "key"), [("epochs: 1\nmodel: a\nepochs: 2\n", "epochs"), ("optimizer:\n  lr: 1\n  lr: 2\n", "lr")])
def test_a_key_that_occurs_twice_is_refused(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"duplicate key '{key}'"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:8", "2:8"),  # 128 in YAML 1.1
        ("2024-01-02", "2024-01-02"),
        ("no", "no"),
        ("08", "08"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("7", 7),
        ("+7", 7),
        ("-1.5e-3", -0.0015),
        (".inf", float("inf")),
        ("true", True),
        ("~", None),
        ("", None),
    ],
)
def test_yaml_means_what_it_says(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"x: {text}\n")
    assert read_yaml(path) == {"x": value}


def test_text_that_yaml_takes_for_something_else_reaches_its_setting(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("dataset: digits\nnum_workers: 2:8\nname: 2024-01-02\ncheckpoint_every: 2\nseed: 007\noptimizer: {nesterov: yes}\n")
    config = parse_config(TrainConfig, read_yaml(path))
    assert (config.num_workers, config.name, config.checkpoint_every, config.seed) == ("2:8", "2024-01-02", "2", 7)
    assert config.optimizer.nesterov is True


def test_a_missing_file_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*nosuch\.yaml: cannot be read \(No such file or directory\)"):
        read_yaml(tmp_path / "nosuch.yaml")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes("\ufeffepochs: 3\r\nmodel: cnn3\r\n".encode())
    assert read_yaml(path) == {"epochs": 3, "model": "cnn3"}


@pytest.mark.parametrize("key", ["name", "save_as", "data_dir", "checkpoint_every"])
def test_a_decimal_number_where_text_is_meant_needs_quotes(tmp_path: Path, key: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{key}: 1.10\n")
    with pytest.raises(ConfigError, match=f"^{key}: expected text, got the number 1.1; put it in quotes"):
        parse_config(TrainConfig, read_yaml(path))
    path.write_text("save_as: '1.10'\nnum_workers: 2.0\noptimizer: {lr: 1.10}\n")
    config = parse_config(TrainConfig, read_yaml(path))
    assert (config.save_as, config.num_workers, config.optimizer.lr) == ("1.10", 2, 1.1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epochs: !!int abc", "'abc' is not of the type !!int .*line 1"),
        ("epochs: !!float abc", "'abc' is not of the type !!float"),
        ("seed: 1\nepochs: !!bool maybe", "'maybe' is not of the type !!bool .*line 2"),
        ("optimizer: {lr: !!timestamp abc}", "'abc' is not of the type !!timestamp"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ('"a\\nb": 3', r"'a\\nb': unknown key"),
        ('name: "a\\nb"', r"name: use letters"),
    ],
)
def test_whatever_is_wrong_in_a_file_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason) as refused:
        parse_config(TrainConfig, read_yaml(path))
    assert "\n" not in str(refused.value)
