"""What every handler can ask for: the service and the options of this server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from lodger.api.aborts import Running
from lodger.service import Service


@dataclass(frozen=True)
class ApiOptions:
    """How this server may be reached."""

    api_key: str | None = None  # asked of every caller when set
    host: str = "127.0.0.1"  # the address it listens on
    port: int = 9997
    open: bool = False  # listens beyond loopback without a key, and the operator said so

    @property
    def address(self) -> str:
        """``host:port`` as Xinference's descriptions show it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# Coroutines, because FastAPI runs plain functions in a thread, which costs more than most requests.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _options(request: Request) -> ApiOptions:
    options: ApiOptions = request.app.state.options
    return options


async def _running(request: Request) -> Running:
    running: Running = request.app.state.running
    return running


ServiceDep = Annotated[Service, Depends(_service)]
OptionsDep = Annotated[ApiOptions, Depends(_options)]
RunningDep = Annotated[Running, Depends(_running)]
