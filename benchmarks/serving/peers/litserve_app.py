"""LitServe with batching, and with its fast queue, which its documentation recommends for throughput."""

import litserve
import numpy as np
from fastapi import Request
from model import Model, Pixels


class Api(litserve.LitAPI):
    """Pictures are decoded and batched in the worker process."""

    def setup(self, device: str) -> None:
        """Runs once in the worker."""
        self.model = Model()

    def decode_request(self, request: Request) -> Pixels:
        """LitServe hands over the parsed form."""
        return self.model.decode(request["image"].file)

    def batch(self, inputs: list[Pixels]) -> np.ndarray:
        """The model stacks by itself."""
        return inputs

    def predict(self, images: list[Pixels]) -> list[list[float]]:
        """One forward pass."""
        return self.model.predict(images)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        """Already a list."""
        return output

    def encode_response(self, output: list[float]) -> dict[str, object]:
        """The answer's JSON."""
        return self.model.answer(output)


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu", fast_queue=True).run(
        host="127.0.0.1", port=8000, log_level="warning", generate_client_file=False
    )
