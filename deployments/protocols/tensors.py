"""Tensors of the Open Inference Protocol: convert a request to pictures, and predictions to JSON or raw bytes.

Raw tensors are little-endian and row-major. In a BYTES tensor, the length of each element, a 32-bit integer, comes before its bytes.
Source: the binary tensor data extension, https://github.com/triton-inference-server/server (docs/protocol).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException

from cifar_ray.inference.preprocess import decode_base64
from deployments.http.uploads import MAX_BATCH_BYTES, MAX_BATCH_IMAGES
from deployments.predicting.contract import Picture, Pixels

PIXELS, IMAGE = "pixels", "image"
_DATATYPES = {PIXELS: "UINT8", IMAGE: "BYTES"}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class InputTensor:
    """An input as sent, unchecked.

    Attributes:
        name: `pixels` or `image`.
        datatype: datatype as the protocol spells it.
        shape: number of elements along each axis.
        content: raw bytes, or a list of values, which may be nested.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes | memoryview | list[Any]

    def pictures(self) -> Sequence[Picture]:
        """The pictures: image files, unchecked, or pixels, uint8 `[H, W, 3]`.

        Raises:
            HTTPException: 400 if the tensor is not a valid input, or has more than 256 pictures; 413 if it has too many values.
            ImageError: if text is not base64.
        """
        if self.name not in _DATATYPES:
            raise HTTPException(400, f"input {self.name[:100]!r} not found. Available: {PIXELS} (UINT8), {IMAGE} (BYTES)")
        if self.datatype != _DATATYPES[self.name]:
            raise HTTPException(400, f"input {self.name!r}: expected datatype {_DATATYPES[self.name]}, got {self.datatype[:20]!r}")
        is_right = self.shape[3:] == (3,) if self.name == PIXELS else self.shape[1:] in ((), (1,))
        if not is_right or not self.shape or min(self.shape) < 1:
            expected = "[N, H, W, 3]" if self.name == PIXELS else "[N] or [N, 1]"
            raise HTTPException(400, f"input {self.name!r}: expected shape {expected}, got {str(list(self.shape[:8]))[:100]}")
        if math.prod(self.shape) > MAX_BATCH_BYTES:
            raise HTTPException(413, f"input {self.name!r} has more than {MAX_BATCH_BYTES:,} values")
        if self.shape[0] > MAX_BATCH_IMAGES:
            raise HTTPException(400, f"the request has {self.shape[0]:,} pictures; the maximum is {MAX_BATCH_IMAGES}")
        return self._pixels() if self.name == PIXELS else self._files()

    def _pixels(self) -> list[Pixels]:
        values = self._numbers()
        self._check_count(values.size)
        return list(values.reshape(self.shape))

    def _numbers(self) -> Pixels:
        if isinstance(self.content, bytes | memoryview):
            return np.frombuffer(self.content, np.uint8)
        try:
            values = np.asarray(self.content)
        except ValueError:  # ragged
            values = np.empty(0, object)
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
            raise HTTPException(400, f"input {self.name!r}: expected whole numbers from 0 to 255, without gaps")
        return values.astype(np.uint8)

    def _files(self) -> list[bytes]:
        if isinstance(self.content, bytes | memoryview):
            files = self._split(memoryview(self.content))
        else:
            files = [self._file(item) for item in self.content]
        self._check_count(len(files))
        return files

    def _file(self, item: Any) -> bytes:
        if isinstance(item, list) and len(item) == 1:  # shape [N, 1]
            [item] = item
        if isinstance(item, bytes):
            return item
        if not isinstance(item, str):
            raise HTTPException(400, f"input {self.name!r}: expected base64 text for each picture, got {type(item).__name__}")
        return decode_base64(item)

    def _split(self, raw: memoryview) -> list[bytes]:
        files: list[bytes] = []
        position = 0
        while position < len(raw) and len(files) < self.shape[0]:
            start = position + _LENGTH.size
            if start > len(raw) or (end := start + _LENGTH.unpack_from(raw, position)[0]) > len(raw):
                raise HTTPException(400, f"input {self.name!r}: element {len(files)} is longer than the data")
            files.append(bytes(raw[start:end]))
            position = end
        if position < len(raw):
            raise HTTPException(400, f"input {self.name!r}: {len(raw) - position:,} bytes follow the last element")
        return files

    def _check_count(self, count: int) -> None:
        if count != math.prod(self.shape):
            raise HTTPException(400, f"input {self.name!r}: shape {list(self.shape)} needs {math.prod(self.shape):,} values, got {count:,}")


@dataclass(frozen=True, eq=False)
class OutputTensor:
    """An output of N pictures.

    Attributes:
        name: name of the tensor.
        datatype: datatype as the protocol spells it.
        values: `[N]` or `[N, K]`; text for the datatype BYTES.
    """

    name: str
    datatype: str
    values: npt.NDArray[Any]

    @property
    def shape(self) -> list[int]:
        """Number of elements along each axis."""
        return list(self.values.shape)

    def as_list(self) -> list[Any]:
        """The values for JSON, row-major."""
        return self.values.ravel().tolist()

    def as_bytes(self) -> bytes:
        """The values as raw bytes."""
        if self.datatype != "BYTES":
            return self.values.tobytes()
        texts = [str(text).encode() for text in self.values.ravel()]
        return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
