"""Tokens, mirrors, proxies and the rest, by the SDKs' own variables, and what each SDK is kept from doing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_faults import WrongBytes
from hub_servers import HubServer
from sdk_child import SdkChild

from lodger.catalogue.repository import HubName
from lodger.errors import DamagedDownload, HubRefused, HubUnreachable
from lodger.hub import TABLE
from lodger.settings import QUIET_SDKS, child_environment

REPO = "acme/model"
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 20}
TOKENS: dict[HubName, str] = {"modelscope": "MODELSCOPE_API_TOKEN", "huggingface": "HF_TOKEN"}

every_hub = pytest.mark.parametrize("name", TABLE)


def fetch(child: SdkChild, name: HubName, folder: Path) -> None:
    listing = child.list_files(name, REPO)
    assert Path(child.download(listing, "config.json", folder).paths[0]).read_bytes() == FILES["config.json"]
    weights = child.download(listing, "model.safetensors", folder)
    assert Path(weights.paths[0]).read_bytes() == FILES["model.safetensors"]


@every_hub
def test_a_token_opens_a_model_and_stays_with_the_hub(name: HubName, hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, FILES, token="open-sesame", gated=True)
    hub.add("acme/private", FILES, token="open-sesame")
    environment = hub.environment(tmp_path / "home")
    for token, status in (({}, "401"), ({TOKENS[name]: "wrong"}, "40[34]")):
        with SdkChild({**environment, **token}) as child:
            with pytest.raises(HubRefused, match=status) as caught:
                child.list_files(name, "acme/private")
            assert TOKENS[name] in caught.value.text
            listing = child.list_files(name, REPO)  # what is in a gated model is no secret
            for path in FILES:
                with pytest.raises(HubRefused, match="only to those who may have it") as caught:
                    child.download(listing, path, tmp_path / "part")
                assert TOKENS[name] in caught.value.text
    with SdkChild({**environment, TOKENS[name]: "open-sesame"}) as child:
        assert len(child.list_files(name, "acme/private").files) == len(FILES)
        fetch(child, name, tmp_path / "part")
    assert not [seen for seen in hub.requests if seen.host == "cdn" and "open-sesame" in str(seen.headers)]


@pytest.mark.parametrize(
    ("name", "variable"),
    [("huggingface", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT"), ("modelscope", "MODELSCOPE_DOMAIN")],
)
def test_a_mirror_behind_a_proxy(name: HubName, variable: str, hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    environment = hub.environment(tmp_path / "home") | {"http_proxy": hub.url, "no_proxy": ""}
    environment |= {"HF_ENDPOINT": "", "MODELSCOPE_ENDPOINT": "", variable: "http://hub.invalid"}
    with SdkChild(environment) as child:
        fetch(child, name, tmp_path / "part")
    addresses = [seen.url for seen in hub.requests]
    assert addresses
    assert all(url.startswith(("http://hub.invalid/", hub.cdn)) for url in addresses)


@every_hub
def test_a_hub_that_is_not_there_is_named(name: HubName, tmp_path: Path) -> None:
    with HubServer() as gone:
        environment, address = gone.environment(tmp_path / "home"), gone.url
    with SdkChild(environment) as child, pytest.raises(HubUnreachable, match="Connection refused") as caught:
        child.list_files(name, REPO)
    assert address in caught.value.message


def test_offline_by_variable_is_said(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    environment = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "1"}
    with SdkChild(environment) as child, pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        child.list_files("huggingface", REPO)
    assert not hub.requests


@every_hub
def test_nothing_is_sent_but_what_is_needed(name: HubName, hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, FILES, xet=True)
    with SdkChild(hub.environment(tmp_path / "home")) as child:
        fetch(child, name, tmp_path / "part")
        assert child.end() == ""
    asked = [(seen.stage, seen.path) for seen in hub.requests if seen.method == "GET"]
    assert set(asked) <= {("listing", None), *((stage, path) for path in FILES for stage in ("resolve", "bytes"))}
    assert len(asked) <= 4
    assert not list((tmp_path / "home").rglob("*")), "no id of this machine, no cache: all is in the folder"


def test_the_variables_that_silence_are_needed_and_the_users_win(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILES)
    loud = dict.fromkeys(QUIET_SDKS, "") | {"MODELSCOPE_DOWNLOAD_INTRA_CLOUD": "true"}
    with SdkChild({**hub.environment(tmp_path / "home"), **loud}) as child:
        for name in TABLE:
            fetch(child, name, tmp_path / name)
    others = {seen.url for seen in hub.requests if seen.stage == "other"} - {
        "/api/agent-harnesses"
    }  # huggingface_hub 2
    assert others == {"/api/v1/repos/internalAccelerationInfo", "/region-id"}
    monkeypatch.setenv("MODELSCOPE_DOWNLOAD_INTRA_CLOUD", "true")
    assert child_environment({}, online=True)["MODELSCOPE_DOWNLOAD_INTRA_CLOUD"] == "true"


def test_wrong_bytes_are_told_by_modelscope_and_left_to_the_caller_by_hugging_face(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.add(REPO, FILES)
    hub.fail("model.safetensors", WrongBytes(), always=True)
    with SdkChild(hub.environment(tmp_path / "home")) as child:
        listing = child.list_files("modelscope", REPO)
        with pytest.raises(DamagedDownload, match="Hash mismatch"):
            child.download(listing, "model.safetensors", tmp_path / "modelscope")
        assert len(hub.served("model.safetensors")) == 3
        assert not (tmp_path / "modelscope" / "model.safetensors").exists()
        listing = child.list_files("huggingface", REPO)
        path = Path(child.download(listing, "model.safetensors", tmp_path / "huggingface").paths[0])
        assert path.read_bytes()[:-1] == FILES["model.safetensors"][:-1]
        hub.heal()
        assert child.download(listing, "model.safetensors", tmp_path / "huggingface").advanced == []
        path.unlink()
        fetch(child, "huggingface", tmp_path / "huggingface")
        fetch(child, "modelscope", tmp_path / "modelscope")
