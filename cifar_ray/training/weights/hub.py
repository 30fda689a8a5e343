"""Weights from the Hugging Face hub, with its client: proxies, mirrors and cache folders are as its documentation says."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path

from cifar_ray.errors import DataError

FILE = "model.safetensors"
_TIMEOUT_S = 4.0


def download(repository: str, model: str) -> Path:
    """The weights of a repository, from the local cache or downloaded to it.

    Args:
        repository: for example `timm/convnext_tiny.in12k_ft_in1k`.
        model: name of the network, for messages.

    Raises:
        DataError: if they are not cached and the hub cannot be reached; it takes at most five seconds.
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
        except OSError as error:  # the errors of the client are OSErrors, too
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
            outcome[0] = ""  # the client reports it better
        except Exception as error:  # of any kind of proxy or resolver: a thread must not end with a traceback
            outcome[0] = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__

    thread = threading.Thread(target=ask, name="hub", daemon=True)  # looking up a name has no timeout
    thread.start()
    thread.join(_TIMEOUT_S)
    return outcome[0]
