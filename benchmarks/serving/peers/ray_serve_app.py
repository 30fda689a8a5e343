"""Ray Serve as its tutorials show it: FastAPI ingress, `@serve.batch` and every setting at its default."""

from typing import Annotated

from fastapi import FastAPI, File, UploadFile
from model import Model, Pixels
from ray import serve

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Classifier:
    """One replica."""

    def __init__(self) -> None:
        self.model = Model()

    @serve.batch
    async def classify(self, images: list[Pixels]) -> list[list[float]]:
        """One forward pass."""
        return self.model.predict(images)

    @api.post("/predict")
    async def predict(self, image: Annotated[UploadFile, File()]) -> dict[str, object]:
        """One picture of a batch."""
        return self.model.answer(await self.classify(self.model.decode(image.file)))


app = Classifier.bind()
