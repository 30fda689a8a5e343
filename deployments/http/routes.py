"""The routes, as a plain Starlette app over a `Classifier`; it does not use Ray."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cifar_ray.captures.reviews import Reviews
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.drift.windows import WindowWriter
from deployments.http import home_page, openapi
from deployments.http.access import KeyGuard, SecurityHeaders
from deployments.http.body_budget import BodyBudget
from deployments.http.handlers import Api
from deployments.http.operation import Operation
from deployments.http.rate_limits import RateLimiter
from deployments.http.responses import STATUS_TABLE, Json
from deployments.http.review_routes import ReviewApi
from deployments.pages import docs_page
from deployments.predicting.contract import Classifier, Observer
from deployments.staging.trials import Trials


def create_app(
    classifier: Classifier,
    config: ServeConfig,
    observer: Observer,
    limiter: RateLimiter | None = None,
    trials: Trials | None = None,
    windows: WindowWriter | None = None,
) -> Starlette:
    """The app without other protocols; the arguments are those of `Api`."""
    return build_app(Api(classifier, config, observer, limiter, trials, windows))


def build_app(api: Api, more_routes: Sequence[Route] = (), more_operations: Sequence[Operation] = ()) -> Starlette:
    """The app with all routes; an error is `application/problem+json` (RFC 9457) unless its path has another form.

    Args:
        api: the handlers.
        more_routes: routes of other protocols.
        more_operations: their descriptions for the OpenAPI document.
    """
    document = openapi.document(more_operations)
    docs, front = docs_page.render(document), home_page.render(has_reviews=api.keys is not None)

    async def answer_document(_: Request) -> Response:
        return Json(document)

    async def answer_docs(_: Request) -> Response:
        return HTMLResponse(docs)

    routes = [
        Route("/predict", api.predict, methods=["POST"]),
        Route("/predict_base64", api.predict, methods=["POST"]),
        Route("/predict_batch", api.predict_batch, methods=["POST"]),
        Route("/explain", api.explain, methods=["POST"]),
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/classes", api.classes),
        Route("/models", api.models),
        Route("/gallery", api.gallery),
        *ReviewApi(api.captures, Reviews(api.config.storage, timeout_s=0)).routes,
        Route("/openapi.json", answer_document),
        Route("/docs", answer_docs),
        *home_page.routes(front),
        *more_routes,
    ]
    app = Starlette(
        routes=routes,
        middleware=[*_access_middleware(api), Middleware(BodyBudget, max_bytes=api.config.max_body_bytes)],
        exception_handlers=dict.fromkeys((HTTPException, *(row[0] for row in STATUS_TABLE)), api.refuse),
    )
    # outermost, so that the response to an unexpected error has these headers too
    app.middleware_stack = SecurityHeaders(app.build_middleware_stack(), {"/": front, "/docs": docs})
    return app


def _access_middleware(api: Api) -> list[Middleware]:
    """Middleware for CORS and API keys, outermost first; empty by default."""
    middleware = []
    if api.config.cors_origins:  # before the keys: a browser sends its preflight request without one
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=api.config.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],  # includes headers of tracing and proxies; no header gives rights
                expose_headers=["Retry-After", "X-Class-Id", "X-Class-Name", "X-Model", "X-Request-Id"],
            )
        )
    if api.keys:
        middleware.append(Middleware(KeyGuard, keys=api.keys, refuse=api.refuse))
    return middleware
