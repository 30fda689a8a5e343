"""FastAPI under uvicorn: blocking work in a plain `def` route, which runs in the thread pool; one process per core."""

from typing import Annotated

from fastapi import FastAPI, File, UploadFile
from model import Model

app = FastAPI()
model = Model()


@app.post("/predict")
def predict(image: Annotated[UploadFile, File()]) -> dict[str, object]:
    """One picture, one forward pass."""
    return model.answer(model.predict([model.decode(image.file)])[0])
