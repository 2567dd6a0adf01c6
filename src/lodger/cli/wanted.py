"""What a command was asked to serve: the command line before lodger.yaml, and that before the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lodger.catalogue.repository import HubName
from lodger.config import Config, home_in, load_config
from lodger.errors import ConfigProblem
from lodger.paths import Home
from lodger.settings import read_settings
from lodger.spec import ModelSpec
from lodger.units import parse_size

if TYPE_CHECKING:
    from lodger.server import ServerOptions

DEFAULT_FILE = Path("lodger.yaml")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What a command was told; None where nothing was said."""

    home: str | None = None
    file: Path | None = None
    demo: bool = False
    engine: str | None = None
    host: str | None = None
    port: int | None = None
    api_key: str | None = None
    open: bool = False
    reserve: str | None = None
    hub: HubName | None = None

    def words(self) -> list[str]:
        """The same for `lodger serve`, which fetches nothing; and without the key, which is not for everyone's eyes."""
        file = self.file or (None if self.demo else DEFAULT_FILE)
        said = {
            "--home": self.home,
            "--file": file and file.absolute(),
            "--engine": self.engine,
            "--host": self.host,
            "--port": self.port,
            "--reserve": self.reserve,
        }
        words = [word for name, value in said.items() if value is not None for word in (name, str(value))]
        return words + ["--demo"] * self.demo + ["--open"] * self.open


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Models and server settings, decided."""

    home: Home
    specs: tuple[ModelSpec, ...]
    host: str
    port: int
    api_key: str | None
    open: bool
    reserve: int | None  # bytes
    device: str | None
    hub: HubName | None  # None: the first that has the model

    def options(self) -> ServerOptions:
        from lodger.server import ServerOptions

        return ServerOptions(
            home=self.home,
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            open=self.open,
            specs=self.specs,
            reserve=self.reserve,
            device=self.device,
        )


def wanted(flags: Flags, *, folders: Sequence[Path] = (), needs_models: bool = True) -> Wanted:
    """
    Args:
        folders: more models, each with its folder's name for a uid.
        needs_models: take ./lodger.yaml when nothing was named.

    Raises:
        ConfigProblem: models are needed and none are named, or the file is not right.
        MissingDependency: the demo's models are not installed.
    """
    file = flags.file
    if file is None and needs_models and not (flags.demo or folders):
        file = _default_file()
    config = load_config(file) if file else Config(models=())
    filed_home = (lambda: config.home) if file else home_here
    settings = read_settings(home=flags.home, api_key=flags.api_key, filed_home=filed_home)
    home = Home(settings.home)
    named = (ModelSpec(uid=uid, path=str(folder)) for uid, folder in _by_name(folders).items())
    specs = (*config.models, *named, *(_demo(home) if flags.demo else ()))
    if flags.engine:
        specs = tuple(msgspec.structs.replace(spec, engine=flags.engine) for spec in specs)
    return Wanted(
        home=home,
        specs=specs,
        host=flags.host or config.host,
        port=config.port if flags.port is None else flags.port,
        api_key=settings.api_key or config.api_key,
        open=flags.open,
        reserve=parse_size(flags.reserve) if flags.reserve else config.reserve,
        device=config.device,
        hub=flags.hub or config.hub,
    )


def home_here() -> Path | None:
    """The home that ./lodger.yaml names, so that all commands in this folder mean the same one.

    A file that cannot be read is said and keeps nobody from stopping a server.
    """
    from lodger.cli.render import say

    if not DEFAULT_FILE.exists():
        return None
    try:
        return home_in(DEFAULT_FILE)
    except ConfigProblem as problem:
        say(f"{problem.message} Going on with the default home.")
        return None


def _default_file() -> Path:
    if not DEFAULT_FILE.exists():
        raise ConfigProblem(
            "There is no lodger.yaml in this folder.", hint="Name one with --file, or try `lodger up --demo`."
        )
    return DEFAULT_FILE


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """By the folders' own names, or as they were typed where two have the same."""
    names = [folder.absolute().name for folder in folders]
    return {
        name if names.count(name) == 1 else str(folder): folder for name, folder in zip(names, folders, strict=True)
    }


def _demo(home: Home) -> tuple[ModelSpec, ...]:
    from lodger.cli.progress import reporting
    from lodger.hub.demo import prepare_demo

    with reporting() as report:
        return prepare_demo(home.make(), report)
