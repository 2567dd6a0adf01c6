"""A client that goes away takes its work with it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from lodger.errors import Cancelled

T = TypeVar("T")


async def gone(receive: Receive) -> None:
    """Returns when the client has closed the connection. The request's body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client goes away.

    Raises:
        Cancelled: it went away.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Cancelled("The client went away.")
    finally:
        await stop(task, watch)


async def stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs, and wait until all of it has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
