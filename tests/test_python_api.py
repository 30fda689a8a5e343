"""`import cifar_ray as cr`: the same functions as the commands, typed, and quick to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cifar_ray as cr
from cifar_ray.errors import ConfigError, DataError, ImageError, ResourceError, ServerError, UnknownModelError
from cifar_ray.notebook import running_server
from tests.deployments.conftest import SaveTiny, make_picture, save_tiny

__all__ = ["save_tiny"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> cr.Model:
    """Trained for one epoch on two colours."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, colour in (("green", (0, 160, 0)), ("red", (160, 0, 0))):
        (folder / name).mkdir()
        for number in range(40):
            pixels = np.clip(rng.normal(0, 25, (12, 12, 3)) + colour, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    settings = {"optimizer.lr": 0.003, "method": "scratch", "recipe": "digits", "image_size": 16}
    return cr.fit(folder, storage=folder.parent / "store", epochs=3, batch_size=8, save_as="colours", **settings)


def test_a_model_is_trained_loaded_asked_and_measured(trained: cr.Model, tmp_path: Path) -> None:
    assert trained.reference == "colours@1"
    assert cr.list_models(trained.storage) == ["colours@1"]
    model = cr.load("colours", trained.storage)
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20), (0, 160, 0)).save(path)
    one, again = model.predict(path), model.predict(path.read_bytes())
    assert (one.class_name, one.labels, one.model, one.version) == ("green", ["green"], "colours", 1)
    assert one == again
    assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-3)
    assert [found.class_name for found in model.predict_all([path] * 70)] == ["green"] * 70
    assert model.predict_all([]) == []
    figures = model.score()
    assert figures["accuracy"] == pytest.approx(model.metrics["test_accuracy"], abs=1e-6)
    assert len(figures["confusion"]) == 2


def test_a_notebook_shows_classes_figures_and_mistakes_as_text_never_as_markup(
    trained: cr.Model, tmp_path: Path, save_tiny: SaveTiny
) -> None:
    assert "colours@1" in repr(trained)
    assert "2 classes" in trained._repr_html_()
    save_tiny(str(tmp_path), class_names=("<script>", "dog", "eel"), metrics={"test_accuracy": 0.5})
    html = cr.load("pets", tmp_path)._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert "test accuracy 50.0 %" in html


def test_mistakes_are_raised_as_our_errors(tmp_path: Path, save_tiny: SaveTiny) -> None:
    with pytest.raises(ConfigError, match="epoch"):
        cr.fit("digits", epoch=3, storage=tmp_path)
    with pytest.raises(DataError, match=r"batch_size: 100000 exceeds the \d+ training images"):
        cr.fit("digits", batch_size=100_000, storage=tmp_path)
    with pytest.raises((ConfigError, DataError), match="nosuchfolder"):
        cr.fit(tmp_path / "nosuchfolder", storage=tmp_path)
    with pytest.raises(UnknownModelError):
        cr.load("fish", tmp_path)
    save_tiny(str(tmp_path))
    model = cr.load("pets", tmp_path)
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        model.predict("gone.jpg")
    with pytest.raises(ImageError):
        model.predict(b"no picture")


def test_no_name_is_lost_when_a_verb_is_imported() -> None:
    program = """
import importlib, pkgutil
import cifar_ray as cr
from cifar_ray.__main__ import VERBS
for verb in VERBS:
    importlib.import_module(f"cifar_ray.{verb}")
for name in cr.__all__:
    assert callable(getattr(cr, name)), name
modules = {module.name for module in pkgutil.iter_modules(cr.__path__)}
assert not modules & set(cr.__all__), modules & set(cr.__all__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_loads_nothing_heavy() -> None:
    program = "import sys, cifar_ray; print(sorted({'torch', 'ray', 'numpy', 'pyarrow', 'pydantic', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cr.nothing  # type: ignore[attr-defined]


def fake_serve(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """`start_server` starts this program instead of the server."""
    start = subprocess.Popen
    monkeypatch.setattr(
        running_server.subprocess, "Popen", lambda command, **options: start([sys.executable, "-c", program, *command[3:]], **options)
    )


def test_a_server_is_started_asked_and_stopped(monkeypatch: pytest.MonkeyPatch, trained: cr.Model) -> None:
    fake_serve(
        monkeypatch,
        """
import http.server, json, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"status": "ready", "model": sys.argv[1], "version": 1}).encode()
        self.send_response(200); self.send_header("Content-Type", "application/json"); self.send_header("Content-Length", str(len(body)))
        self.end_headers(); self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
""",
    )
    with cr.start_server(trained, port=_free_port()) as server:
        assert server.client.ready()
        assert server.url in server._repr_html_()
        assert "runs" in repr(server)
    assert "stopped" in repr(server)
    with pytest.raises(ServerError, match="no response"):
        server.client.ready()


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_serve(monkeypatch, "import sys; print('error: no model yet', file=sys.stderr); sys.exit(2)")
    with pytest.raises(ResourceError, match="the server did not start: error: no model yet"):
        cr.start_server(storage=tmp_path, port=_free_port())


def _free_port() -> int:
    from cifar_ray.cli.serving import free_port

    return free_port()


def test_pictures_can_be_bytes_or_paths(trained: cr.Model) -> None:
    assert trained.predict(make_picture()).class_name in trained.class_names
