"""TorchServe's inference API: clients of TorchServe only have to change the address.

Source: https://pytorch.org/serve/inference_api.html.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cifar_ray.errors import ImageError
from deployments.http import uploads
from deployments.http.access import holder
from deployments.http.handlers import Api
from deployments.http.responses import ErrorForm, Json, prediction
from deployments.predicting import schemas as own_schemas
from deployments.protocols import protocol_schemas as schemas
from deployments.protocols.open_inference import reference


def _error(content: own_schemas.Problem) -> schemas.TorchServeError:
    kind = "ModelNotFound" if content["status"] == 404 else content["title"].replace(" ", "")
    return {"code": content["status"], "type": f"{kind}Exception", "message": content["detail"]}


ERROR_FORM = ErrorForm(schemas.TorchServeError, "application/json", _error)


class TorchServe:
    """Handlers of `/predictions` and `/ping`.

    Args:
        api: pipeline, limits and models.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The routes. They accept PUT, too, because `curl -T picture.jpg`, as in TorchServe's documentation, sends a PUT request."""
        return [
            Route("/predictions/{name}", self.predict, methods=["POST", "PUT"]),
            Route("/predictions/{name}/{version}", self.predict, methods=["POST", "PUT"]),
            Route("/ping", self.ping),
        ]

    async def predict(self, request: Request) -> Response:
        """`POST /predictions/{name}` and `POST /predictions/{name}/{version}`: probabilities of the most likely classes."""
        top_k = self._api.top_k(request)
        sent = await self._api.read(request, uploads.read_picture)
        model_reference = reference(self._api, request.path_params["name"], request.path_params.get("version"))
        outcome = await self._api.classify([sent.data], model_reference, request.headers, holder(request))
        [row] = outcome.rows
        if isinstance(row, ImageError):
            raise row
        ranked = prediction(outcome.model, row, top_k)["top_k"]
        return Json({one["class_name"]: one["probability"] for one in ranked})

    async def ping(self, _: Request) -> Response:
        """`GET /ping`: a model is available."""
        await self._api.pipeline.model(None)
        answer: schemas.Ping = {"status": "Healthy"}
        return Json(answer)
