"""The folder of `store export --format web`; tests/web/test_exported_page.py opens the page in a browser."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_ray import cli
from cifar_ray.errors import MissingDependencyError
from cifar_ray.inference.exporting import web_folder
from cifar_ray.inference.exporting.export import Exported
from cifar_ray.inference.exporting.web_folder import export_web
from cifar_ray.store import Bundle
from cifar_ray.store.__main__ import main

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with other content, and a model that is ready."""
    path = tmp_path / "runtime.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name in web_folder._RUNTIME:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    monkeypatch.setattr(web_folder, "build", lambda bundle, form, target: Exported(target, b"onnx", 0.0, 1, "test", 1.0, (1, 1)))
    return path


def test_the_folder_has_the_page_the_model_and_the_runtime(
    make_bundle: MakeBundle, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_folder, "_RUNTIME", {name: hashlib.sha256(name.encode()).hexdigest() for name in web_folder._RUNTIME})
    names = ("cat", "</script><b>dog</b>", "eel")
    _, size_bytes = export_web(make_bundle(class_names=names), str(tmp_path / "site"), packed)
    files = {path.name: path.read_bytes() for path in (tmp_path / "site").iterdir()}
    assert set(files) == {"index.html", "model.onnx", *web_folder._RUNTIME}
    assert size_bytes == sum(map(len, files.values()))
    page = files["index.html"].decode()
    assert "<b>dog" not in page
    assert page.count("</script>") == 1


def test_another_runtime_is_refused_and_nothing_is_written(make_bundle: MakeBundle, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"runtime\.tgz: ort\.wasm\.min\.mjs is not that of onnxruntime-web@.*npm pack onnxr"):
        export_web(make_bundle(), str(tmp_path / "site"), packed)
    packed.write_bytes(b"no tar")
    with pytest.raises(MissingDependencyError, match=r"runtime\.tgz: not a packed onnxruntime-web"):
        export_web(make_bundle(), str(tmp_path / "site"), packed)
    assert not (tmp_path / "site").exists()


def test_without_npm_one_line_says_how(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"^npm cannot fetch onnxruntime-web@[\d.]+; .*--runtime"):
        export_web(make_bundle(), str(tmp_path / "site"))


def test_a_runtime_for_another_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: main(["export", "pets", "--runtime", "x.tgz", "--storage", str(tmp_path)])) == 2
    assert capsys.readouterr().err.splitlines() == ["error: runtime: onnx needs none; add --format web"]
