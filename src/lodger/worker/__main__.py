"""`python -m lodger.worker --fd N --device cpu --engine native`, started by the supervisor and by nobody else.

It lives as long as its socket: it ends at `Shutdown`, and when the gateway's end closes. SIGTERM is not for it, since
a service manager sends that to a whole group at once and the gateway wants to finish what runs first.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any

from lodger import interpreter, log
from lodger.engines import cuda_context, open_engine
from lodger.engines.base import Engine
from lodger.ipc.channel import Channel
from lodger.ipc.messages import VERSION, Hello, ToWorker
from lodger.worker.host import Host


def main() -> None:
    parser = argparse.ArgumentParser(prog="lodger.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket of the gateway")
    parser.add_argument("--device", required=True, help="cpu, cuda:0, ...")
    parser.add_argument("--engine", required=True, help="name of an engine, or module:Class")
    options = parser.parse_args()
    faulthandler.enable()  # a crash in native code leaves its stack in the log
    log.setup()
    interpreter.begin()
    if options.engine == "native":
        cuda_context.begin(options.device)
    gateway = socket.socket(fileno=options.fd)
    engine = open_engine(options.engine, options.device)
    interpreter.settle()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _run(_serve(gateway, engine))


async def _serve(gateway: socket.socket, engine: Engine) -> None:
    channel: Channel[ToWorker] = await Channel.open(gateway, ToWorker)
    channel.post(Hello(version=VERSION, pid=os.getpid()))
    code = await Host(channel, engine).serve()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # at once: a load that still runs in a thread must not hold up the end


def _run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        asyncio.run(serving)
    else:
        uvloop.run(serving)


if __name__ == "__main__":
    main()
