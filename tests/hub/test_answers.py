"""What answers of a hub mean, and when it is asked again."""

from __future__ import annotations

import pytest

from lodger.errors import DamagedDownload, HubProblem, HubRefused, HubUnreachable
from lodger.hub.answers import Asked, Meter, Retries, refusal, seconds

ASKED = Asked("huggingface", "https://hub.example", "HF_ENDPOINT", "HF_TOKEN", "acme/model", "v1", "config.json")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, HubRefused),
        (401, HubRefused),
        (403, HubRefused),
        (404, HubRefused),
        (408, HubUnreachable),
        (429, HubUnreachable),
        (500, HubUnreachable),
        (504, HubUnreachable),
    ],
)
def test_a_status_that_may_pass_is_no_refusal(status: int, kind: type[HubProblem]) -> None:
    error = refusal(ASKED, status, url="https://hub.example/acme/model")
    assert type(error) is kind
    assert str(status) in error.message
    assert "https://hub.example" in error.message


def test_storage_that_refuses_a_signature_may_take_the_next_one() -> None:
    error = refusal(ASKED, 403, url="https://user:secret@cdn.example/path?Signature=secret")
    assert type(error) is HubUnreachable
    assert "https://cdn.example," in error.message
    assert "secret" not in error.text


class Attempts:
    """Raises its errors, one at each call, then returns "done"."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.slept: list[float] = []
        self.retries = Retries(delays=(1, 2, 4), longest=60, sleep=self.slept.append)

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def run(self) -> str:
        return self.retries.run(self)


def test_trouble_is_waited_for_longer_each_time_and_not_for_ever() -> None:
    attempts = Attempts(*[HubUnreachable("no")] * 3)
    assert attempts.run() == "done"
    assert attempts.slept == [1, 2, 4]
    with pytest.raises(HubUnreachable):
        Attempts(*[HubUnreachable("no")] * 4).run()


def test_a_hub_says_how_long_to_wait_within_reason() -> None:
    attempts = Attempts(HubUnreachable("no", retry_after=30))
    assert attempts.run() == "done"
    assert attempts.slept == [30]
    attempts = Attempts(HubUnreachable("no", retry_after=3600))
    with pytest.raises(HubUnreachable) as caught:
        attempts.run()
    assert caught.value.retry_after == 3600
    assert attempts.slept == []


def test_damage_is_tried_again_once_and_a_refusal_never() -> None:
    assert Attempts(DamagedDownload("no")).run() == "done"
    with pytest.raises(DamagedDownload):
        Attempts(DamagedDownload("no"), DamagedDownload("no")).run()
    with pytest.raises(HubRefused):
        Attempts(HubRefused("no")).run()


@pytest.mark.parametrize(("header", "wait"), [("7", 7), (None, None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)])
def test_retry_after_counts_seconds(header: str | None, wait: int | None) -> None:
    assert seconds(header) == wait


def test_a_meter_tells_differences() -> None:
    told: list[int] = []
    meter = Meter(told.append, 10)
    for position in (10, 30, 0, 40):
        meter.at(position)
    assert told == [20, -30, 40]
