"""The server with all its protocols: HTTP and gRPC over one pipeline."""

from __future__ import annotations

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.drift.windows import WindowWriter
from deployments.http.handlers import Api
from deployments.http.rate_limits import RateLimiter
from deployments.http.routes import build_app
from deployments.jobs.job_routes import JOB_OPERATIONS, JobApi
from deployments.predicting.contract import Classifier, Observer
from deployments.protocols import inference_http, torchserve
from deployments.protocols.inference_grpc import OpenInferenceGrpc
from deployments.protocols.inference_http import OpenInferenceHttp
from deployments.protocols.protocol_operations import OPERATIONS
from deployments.protocols.torchserve import TorchServe
from deployments.staging.trials import Trials

_ERROR_FORMS = {"v2": inference_http.ERROR_FORM, "predictions": torchserve.ERROR_FORM, "ping": torchserve.ERROR_FORM}


class ProtocolServer(OpenInferenceGrpc):
    """The HTTP app with all routes, and the gRPC methods.

    Args:
        classifier: runs the models.
        config: defaults and limits.
        observer: receives request events.
        limiter: holds the rate limits of the API keys; default: in this process.
        trials: the versions on trial; default: none.
        windows: counts answers for drift detection; default: answers are not counted.

    Attributes:
        http_app: the HTTP app; not named `app`, because Ray Serve's wrapper of a deployment already has an attribute `app`.
    """

    def __init__(
        self,
        classifier: Classifier,
        config: ServeConfig,
        observer: Observer,
        limiter: RateLimiter | None = None,
        trials: Trials | None = None,
        windows: WindowWriter | None = None,
    ) -> None:
        api = Api(classifier, config, observer, limiter, trials, windows, _ERROR_FORMS)
        super().__init__(api)
        routes = [*JobApi(api).routes, *OpenInferenceHttp(api).routes(), *TorchServe(api).routes()]
        self.http_app = build_app(api, routes, (*JOB_OPERATIONS, *OPERATIONS))
