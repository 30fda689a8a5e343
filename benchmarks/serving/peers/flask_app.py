"""Flask under gunicorn's default workers: one request at a time in each process."""

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from model import Model

app = Flask(__name__)
model = Model()


@app.post("/predict")
def predict() -> ResponseReturnValue:
    """One picture, one forward pass."""
    return jsonify(model.answer(model.predict([model.decode(request.files["image"].stream)])[0]))
