"""Requests of the other protocols as their clients write them, without these clients."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[np.uint8] | list[bytes]


def raw(tensor: Tensor) -> bytes:
    """The binary form of UINT8 and BYTES."""
    if isinstance(tensor, np.ndarray):
        return tensor.tobytes()
    return b"".join(struct.pack("<I", len(item)) + item for item in tensor)


def binary_request(tensor: Tensor, *outputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What `tritonclient.http` posts: a JSON document without spaces to spare, then the tensors."""
    content = raw(tensor)
    is_pixels = isinstance(tensor, np.ndarray)
    sent = {
        "inputs": [
            {
                "name": "pixels" if is_pixels else "image",
                "shape": list(np.shape(tensor)) if is_pixels else [len(tensor)],
                "datatype": "UINT8" if is_pixels else "BYTES",
                "parameters": {"binary_data_size": len(content)},
            }
        ],
        **({"outputs": list(outputs)} if outputs else {"parameters": {"binary_data_output": True}}),
        **more,
    }
    head = json.dumps(sent).encode()
    return {"content": head + content, "headers": {"Inference-Header-Content-Length": str(len(head))}}


def read_answer(body: bytes, header_length: str | None) -> dict[str, Any]:
    """The outputs of an answer by name, arrays where they came as raw bytes, and the rest of the document."""
    head = json.loads(body[: int(header_length)] if header_length else body)
    position = int(header_length or len(body))
    found: dict[str, Any] = {key: value for key, value in head.items() if key != "outputs"}
    for output in head["outputs"]:
        if "data" in output:
            found[output["name"]] = output["data"]
            continue
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = read_raw(output["datatype"], output["shape"], body[position : position + size])
        position += size
    assert position == len(body)
    return found


def read_raw(datatype: str, shape: list[int], content: bytes) -> Any:
    """Values of a raw tensor; texts for BYTES."""
    if datatype != "BYTES":
        kind = {"FP32": "<f4", "INT64": "<i8", "BOOL": "?"}[datatype]
        return np.frombuffer(content, kind).reshape(shape).tolist()
    texts = []
    while content:
        [length] = struct.unpack_from("<I", content)
        texts.append(content[4 : 4 + length].decode())
        content = content[4 + length :]
    return np.array(texts, object).reshape(shape).tolist()
