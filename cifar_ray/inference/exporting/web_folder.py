"""Export a model as a folder for a static file server, with a page that classifies pictures in the browser, offline."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from cifar_ray.config import resolve_storage
from cifar_ray.errors import MissingDependencyError
from cifar_ray.inference.exporting.export import Exported, build
from cifar_ray.inference.preprocess import MAX_IMAGE_PIXELS
from cifar_ray.storage import FileTree
from cifar_ray.store import Bundle

# Files of the npm package that the page loads (MIT licence), with their sha256
PACKAGE = "onnxruntime-web@1.30.0"
_RUNTIME = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_NPM_TIMEOUT_S = 300


def export_web(bundle: Bundle, target: str, runtime: Path | None = None) -> tuple[Exported, int]:
    """Write `index.html`, `model.onnx` and the runtime to a folder, after the check of `export`.

    Args:
        bundle: the bundle to export.
        target: path or URI of the folder; other files in the folder stay.
        runtime: path of the packed `PACKAGE` (`.tgz`); `None` fetches the package with npm.

    Returns:
        The ONNX file, and the size of all files in bytes.

    Raises:
        MissingDependencyError: if the runtime cannot be fetched or read, or a package for ONNX is not installed.
        BundleError, StoreError: see `export`.
    """
    files = _fetch() if runtime is None else _unpack(runtime)
    exported = build(bundle, "onnx", target)
    files["model.onnx"] = exported.data
    files["index.html"] = _page(bundle)  # written last, so that the page never lacks its files
    folder = FileTree(resolve_storage(target), "")
    for name, data in files.items():
        folder.replace(name, data)
    return exported, sum(map(len, files.values()))


def _page(bundle: Bundle) -> bytes:
    environment = Environment(loader=PackageLoader(__package__, "web"), autoescape=True, undefined=StrictUndefined)
    about = {"model": bundle.reference, "class_names": bundle.manifest.class_names, "max_pixels": MAX_IMAGE_PIXELS}
    return environment.get_template("index.html").render(about=about).encode()


def _fetch() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(  # noqa: S603
                ["npm", "pack", "--silent", "--prefer-offline", PACKAGE],  # noqa: S607
                cwd=folder,
                check=True,
                capture_output=True,
                timeout=_NPM_TIMEOUT_S,
            )
            (packed,) = Path(folder).iterdir()
        except (OSError, subprocess.SubprocessError, ValueError):
            raise MissingDependencyError(
                f"npm cannot fetch {PACKAGE}; where it can, run: npm pack {PACKAGE}; then pass --runtime with the .tgz file"
            ) from None
        return _unpack(packed)


def _unpack(packed: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(packed) as tar:
            files = {name: tar.extractfile(f"package/dist/{name}") for name in _RUNTIME}
            contents = {name: file.read() for name, file in files.items() if file is not None}
    except (OSError, tarfile.TarError, KeyError) as error:
        raise MissingDependencyError(f"{packed}: not a packed {PACKAGE} ({error}); create it with: npm pack {PACKAGE}") from None
    for name, expected in _RUNTIME.items():
        found = hashlib.sha256(contents.get(name, b"")).hexdigest()
        if found != expected:
            raise MissingDependencyError(
                f"{packed}: {name} is not that of {PACKAGE}: sha256 {found[:12]}… instead of {expected[:12]}…; "
                f"create the file with: npm pack {PACKAGE}"
            )
    return contents
