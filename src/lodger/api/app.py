"""`build_app`: every dialect, behind one border, over one service."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from lodger import __version__
from lodger.api.aborts import Abortable, Running
from lodger.api.border import Border
from lodger.api.context import ApiOptions
from lodger.api.dialects import routers
from lodger.api.errors import on_http_exception, on_invalid_body
from lodger.api.limits import BodyLimit
from lodger.api.paths import TolerantPaths, known_heads
from lodger.api.security import Gate
from lodger.service import Service

__all__ = ["ApiOptions", "build_app"]

_LOCAL_PAGES = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def build_app(service: Service, options: ApiOptions) -> FastAPI:
    """The ASGI application. It holds no state of its own; ``/openapi.json`` describes it."""
    dialects = routers()
    heads = known_heads(route.path for router in dialects for route in router.routes if isinstance(route, Route))
    running = Running()
    app = FastAPI(
        title="Lodger",
        version=__version__,
        docs_url=None,  # FastAPI's pages load their scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            _cors(options),
            Middleware(Border),
            Middleware(TolerantPaths, heads=heads),
            Middleware(Gate, options=options),
            Middleware(BodyLimit),
            Middleware(Abortable, running=running),
        ],
        exception_handlers={HTTPException: on_http_exception, RequestValidationError: on_invalid_body},
    )
    app.state.service, app.state.options, app.state.running = service, options, running
    for router in dialects:
        app.include_router(router)
    return app


def _cors(options: ApiOptions) -> Middleware:
    """What browsers are told of pages that may read answers: with a key all that have it, else those of this machine,
    which `Gate` answers too. Outermost, so that errors can be read as well."""
    pages: dict[str, Any] = {"allow_origins": ["*"]} if options.api_key else {"allow_origin_regex": _LOCAL_PAGES}
    told = ["x-request-id", "x-lodger-truncated", "retry-after"]
    return Middleware(CORSMiddleware, allow_methods=["*"], allow_headers=["*"], expose_headers=told, **pages)
