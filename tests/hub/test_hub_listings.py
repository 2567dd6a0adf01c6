"""What `Hub.list_files` promises, kept by every hub of the table: the real SDKs against a local server."""

from __future__ import annotations

import hashlib

import pytest
from acme_model import FILES, REPO
from hub_faults import Cut, Drop, Fault, Status
from hub_servers import HubServer
from sdk_child import SdkChild

from lodger.catalogue.repository import HubName
from lodger.errors import HubRefused, HubUnreachable
from lodger.hub import TABLE

every_hub = pytest.mark.parametrize("name", TABLE)


@pytest.fixture
def hub(acme_hub: HubServer) -> HubServer:
    return acme_hub


@every_hub
def test_a_listing_has_every_file_with_size_and_hash(name: HubName, child: SdkChild) -> None:
    listing = child.list_files(name, REPO)
    assert (listing.hub, listing.repo) == (name, REPO)
    assert {file.path: file.size for file in listing.files} == {path: len(data) for path, data in FILES.items()}
    for file in listing.files:
        data = FILES[file.path]
        if file.sha256 is not None:
            assert file.sha256 == hashlib.sha256(data).hexdigest()
        else:
            assert file.git_sha1 == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    assert next(file for file in listing.files if file.path == "model.safetensors").sha256, "weights always have one"


@every_hub
def test_a_listing_is_complete_however_many_files_there_are(name: HubName, hub: HubServer, child: SdkChild) -> None:
    hub.page = 700
    many = {f"part-{folder}/{number}.json": b"1" for folder in range(3) for number in range(1100)}
    hub.add("acme/many", many)
    assert {file.path for file in child.list_files(name, "acme/many").files} == set(many)


@every_hub
def test_a_listing_is_of_the_revision_that_was_asked_for(name: HubName, hub: HubServer, child: SdkChild) -> None:
    repo = hub.add("acme/old", FILES, revisions=("main", "master", "v1.0"))
    assert child.list_files(name, "acme/old", "v1.0").revision in ("v1.0", repo.commit)
    assert child.list_files(name, "acme/old", repo.commit).revision == repo.commit
    newest = child.list_files(name, "acme/old").revision
    assert newest == {"modelscope": "master", "huggingface": repo.commit}[name], "a commit where the hub tells one"


@every_hub
@pytest.mark.parametrize("fault", [Status(500), Status(503), Drop(), Cut(20), Cut(20, reset=True)])
def test_trouble_with_a_listing_passes(name: HubName, fault: Fault, hub: HubServer, child: SdkChild) -> None:
    hub.fail_listing(fault)
    assert len(child.list_files(name, REPO).files) == len(FILES)


@every_hub
@pytest.mark.parametrize(
    "body", [b"<html>Log in to this network</html>", b"[1, 2]", b"null", b'{"Data": {"Files": [1]}}']
)
def test_a_listing_that_is_none_is_said_to_be_none(name: HubName, body: bytes, hub: HubServer, child: SdkChild) -> None:
    hub.fail_listing(Status(200, body), always=True)
    with pytest.raises(HubUnreachable, match="not a hub's listing") as caught:
        child.list_files(name, REPO)
    assert hub.url in caught.value.message


@every_hub
@pytest.mark.parametrize("path", ["../out.json", "/etc/passwd", "a/../../out.json"])
def test_a_listing_cannot_name_files_outside_the_folder(
    name: HubName, path: str, hub: HubServer, child: SdkChild
) -> None:
    hub.add("acme/evil", {"config.json": b"{}", path: b"evil"})
    with pytest.raises(HubRefused, match="no file of a model"):
        child.list_files(name, "acme/evil")


@every_hub
@pytest.mark.parametrize(("repo", "revision"), [("acme/modle", None), (REPO, "v9"), ("modle", None)])
def test_an_unknown_name_or_revision_is_refused_once(
    name: HubName, repo: str, revision: str | None, hub: HubServer, child: SdkChild
) -> None:
    with pytest.raises(HubRefused, match=revision or repo) as caught:
        child.list_files(name, repo, revision)
    assert {"modelscope": "ModelScope", "huggingface": "Hugging Face"}[name] in caught.value.message
    assert {"modelscope": "MODELSCOPE_API_TOKEN", "huggingface": "HF_TOKEN"}[name] in (caught.value.hint or "")
    assert len(hub.requests) == 1
    hub.requests.clear()  # ModelScope has no address for a name without a slash
