"""Files of weights come from anywhere: whatever is in them, reading gives tensors or one line, and never runs code."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from cifar_ray.errors import ConfigError
from cifar_ray.models.weight_files import read_weights

STATE = {"conv.weight": torch.randn(4, 3, 3, 3), "fc.bias": torch.randn(5)}


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def torch_file(content: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    return str(error.value)


@pytest.mark.parametrize("nest", [(), ("state_dict",), ("model",), ("model_ema", "state_dict"), ("weights",)])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_where_training_scripts_put_it(tmp_path: Path, nest: tuple[str, ...], zipped: bool) -> None:
    content: object = STATE
    for key in reversed(nest):
        content = {"epoch": 3, key: content}
    (tmp_path / "a.pth").write_bytes(torch_file(content, zipped))
    found, about = read_weights(tmp_path / "a.pth")
    assert about == {}
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_code_in_a_file_is_never_run(tmp_path: Path, zipped: bool, nested: bool) -> None:
    exploit = Exploit(tmp_path / "owned")
    (tmp_path / "a.pth").write_bytes(torch_file({"state_dict": STATE, "config": exploit} if nested else exploit, zipped))
    assert "more than tensors, which is not loaded for security" in refused(tmp_path / "a.pth")
    assert not (tmp_path / "owned").exists()


def test_code_in_a_plain_pickle_is_never_run_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a.pth", "a.pt", "a.bin", "a.pkl", "a.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps({"x": Exploit(tmp_path / "owned")}))
        refused(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "data"), [("a.pth", torch_file(STATE)), ("b.pth", torch_file(STATE, False)), ("c.safetensors", save(STATE))]
)
def test_a_truncated_file_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    for length in range(0, len(data) - 1, max(1, len(data) // 40)):
        (tmp_path / name).write_bytes(data[:length])
        refused(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data"), [("a.pth", torch_file(STATE)), ("b.pth", torch_file(STATE, False)), ("c.safetensors", save(STATE))]
)
def test_changed_bytes_give_tensors_or_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    chance = random.Random(0)  # noqa: S311
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 2, 20))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            found, _about = read_weights(tmp_path / name)
        except ConfigError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95", bytes(1000), struct.pack("<Q", 2**60) + b"{}", b"\x02" + bytes(7) + b"[]"]
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_bytes_that_are_no_weights_are_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name)


@pytest.mark.parametrize("content", [[], {}, {"epoch": 3}, {"state_dict": []}, {"state_dict": {"a": {}}}, torch.zeros(2), None, {"a": "b"}])
def test_a_file_without_a_state_dict_is_one_line(tmp_path: Path, content: object) -> None:
    (tmp_path / "a.pth").write_bytes(torch_file(content))
    assert "no state dict found; save one with torch.save(model.state_dict()" in refused(tmp_path / "a.pth")


def test_a_missing_file_a_folder_and_another_archive_are_one_line(tmp_path: Path) -> None:
    assert "file not found" in refused(tmp_path / "none.pth")
    assert "file not found" in refused(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    refused(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of TorchScript, by torch itself
def test_a_torchscript_program_is_told(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    assert "TorchScript program; export it as a state dict" in refused(tmp_path / "a.pt")
