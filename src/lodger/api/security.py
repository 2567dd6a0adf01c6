"""Who may ask for what.

With an API key every route wants it, save three that hold no secrets and the login, where it is shown. Without one
only programs of this machine may ask: a web page in its owner's browser can reach loopback too, by a rebound DNS name
(caught by the Host header) or by a cross-site request (caught by the Origin header). Listening elsewhere without a key
(`open`) gives inference to everyone and administration to loopback.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lodger.api.context import ApiOptions, OptionsDep
from lodger.errors import KeyRequired, NotAllowed

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/v1/cluster/auth", "/token"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1", "host.docker.internal"})


class Gate:
    """Middleware in front of every route, known and unknown."""

    def __init__(self, app: ASGIApp, options: ApiOptions) -> None:
        self._app = app
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            check_caller(Headers(scope=scope), scope["path"], self._options)
        await self._app(scope, receive, send)


def check_caller(headers: Headers, path: str, options: ApiOptions) -> None:
    """
    Raises:
        KeyRequired: a key is set and the caller does not have it.
        NotAllowed: no key is set, and a web page may be behind the request.
    """
    if options.api_key is not None:
        if path not in PUBLIC_PATHS and not _has_key(headers, options.api_key):
            raise KeyRequired(
                "This address wants an API key.", hint="Send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'."
            )
        return
    if not options.open:
        check_host(headers, options)
    check_origin(headers, options)


def check_host(headers: Headers, options: ApiOptions) -> None:
    """
    Raises:
        NotAllowed: the Host header is not a name of this machine, as with a rebound DNS name.
    """
    if _hostname(headers.get("host", "")) not in _LOCAL_NAMES | {options.host}:
        raise NotAllowed(
            "The Host header is not one of this machine's.",
            hint="Without an API key Lodger answers to localhost, 127.0.0.1, [::1] and host.docker.internal only.",
        )


def check_origin(headers: Headers, options: ApiOptions) -> None:
    """
    Raises:
        NotAllowed: the request comes from a web page of another site.
    """
    origin = headers.get("origin")
    if origin is None:
        return
    netloc = origin.partition("://")[2]
    same_site = options.open and netloc == headers.get("host", "")
    if not same_site and _hostname(netloc) not in _LOCAL_NAMES | {options.host}:
        raise NotAllowed("Web pages of other sites may not ask here.", hint="Set an API key to allow such callers.")


async def require_admin(request: Request, options: OptionsDep) -> None:
    """Dependency of routes that change what runs or show what only its operator should see.

    Raises:
        NotAllowed: no key is set and the caller is not on this machine.
    """
    if options.api_key is not None:
        return
    if request.client is None or not _is_loopback(request.client.host):
        raise NotAllowed(
            "Without an API key this is for callers on the same machine.",
            hint="Call it through 127.0.0.1, or start Lodger with an API key.",
        )
    check_host(request.headers, options)


AdminOnly = Depends(require_admin)


def _has_key(headers: Headers, key: str) -> bool:
    """As OpenAI's clients send it, or as Anthropic's do."""
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    bearer = sent.strip() if scheme.lower() == "bearer" else ""
    return any(is_key(own.encode("latin-1"), key) for own in (bearer, headers.get("x-api-key", "")))


def is_key(sent: bytes, key: str) -> bool:
    """Whether `sent` is the key, told in a time that says nothing of it."""
    return hmac.compare_digest(sent, key.encode())


def _hostname(netloc: str) -> str | None:
    try:
        return urlsplit(f"//{netloc}").hostname
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
