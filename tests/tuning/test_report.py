"""Pictures, report and best recipe."""

import re

from cifar_ray.cli.training_flags import parse_train_command
from cifar_ray.config import TrainConfig
from cifar_ray.reports.search_report import write_results
from cifar_ray.storage import FileTree
from cifar_ray.tuning.importance import parameter_importance
from cifar_ray.tuning.record import Record
from cifar_ray.tuning.space import SearchSpace


def test_a_search_leaves_a_recipe_pictures_and_a_report_that_needs_nothing_else(
    record: Record, fixed: TrainConfig, space: SearchSpace, tmp_path
) -> None:
    files = FileTree(str(tmp_path), "tunings/one")
    best = write_results(record, fixed, space, files, "one", ["no trial is better than the probe"])
    assert best is not None
    for name in ("curves", "parallel", "importance"):
        assert (files.read(f"{name}.png") or b"").startswith(b"\x89PNG")
    page = (files.read("report.html") or b"").decode()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"""(src|href)=["']?(https?:|//|[\w./]+\.(png|css|js))""", page)
    assert "the loss became nan in epoch 2" in page
    assert "No trial is better than the probe." in page
    (best_row,) = re.findall(r'<tr class="best">\n<td class="number">(\d+)</td>', page)
    assert int(best_row) == record.ranked()[0].number
    command = parse_train_command(["--config", files.path("best.yaml")], "train")
    assert command.optimizer.lr == record.ranked()[0].parameters["optimizer.lr"]
    assert TrainConfig.model_validate(command.model_dump(include=set(TrainConfig.model_fields))) == best


def test_a_search_without_a_figure_yet_leaves_a_report_and_no_recipe(fixed: TrainConfig, space: SearchSpace, tmp_path) -> None:
    files = FileTree(str(tmp_path), "tunings/one")
    assert write_results(Record("val_accuracy", 6, 4), fixed, space, files, "one") is None
    assert files.read("best.yaml") is None
    assert b"0 of 4 trials" in (files.read("report.html") or b"")


def test_importance_finds_the_parameter_that_matters_and_says_how_it_compared(record: Record, space: SearchSpace) -> None:
    importance = parameter_importance(record, space)
    assert importance is not None
    assert max(importance.mean, key=importance.mean.__getitem__) == "optimizer.lr"
    assert importance.mean["optimizer.lr"] > 0.6
    assert (importance.epoch, importance.count) == (2, 12)


def test_importance_is_not_guessed_from_few_trials(record: Record, space: SearchSpace) -> None:
    record.trials = record.trials[:7]
    assert parameter_importance(record, space) is None
