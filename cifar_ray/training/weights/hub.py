"""Download weights with the client of the Hugging Face hub; proxies, mirrors and cache folders follow the client's documentation."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path

from cifar_ray.errors import DataError

FILE = "model.safetensors"
_TIMEOUT_S = 4.0


def download(repository: str, model: str) -> Path:
    """Path of a repository's weights in the local cache; they are downloaded if they are missing.

    Args:
        repository: for example `timm/convnext_tiny.in12k_ft_in1k`.
        model: name of the network, for messages.

    Raises:
        DataError: if the weights are not cached and cannot be downloaded; an unreachable hub is detected within five seconds.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, FILE)
    if isinstance(cached, str):
        return Path(cached)
    address = huggingface_hub.hf_hub_url(repository, FILE)
    reason = _unreachable(address)
    if not reason:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, FILE))
        except OSError as error:  # the client's own errors are also OSErrors
            reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise DataError(
        f"pretrained: cannot download {address} ({reason}). Bring {FILE} yourself: pass --pretrained {FILE}, "
        f"or fill the cache on a connected machine (hf download {repository} {FILE}) and copy it with $HF_HOME, "
        f"or use the weights that are installed: --model timm:tf_efficientnet_lite0 ({model} is not)"
    )


def _unreachable(address: str) -> str:
    """Why an address cannot be reached within a few seconds; empty if it can. The client itself would retry for most of a minute."""
    outcome = ["timed out"]

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
                outcome[0] = ""
        except urllib.error.HTTPError:
            outcome[0] = ""  # the server responds; the client's own error says more
        except Exception as error:  # proxies and resolvers raise errors of many types
            outcome[0] = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__

    thread = threading.Thread(target=ask, name="hub", daemon=True)  # a DNS lookup has no timeout
    thread.start()
    thread.join(_TIMEOUT_S)
    return outcome[0]
