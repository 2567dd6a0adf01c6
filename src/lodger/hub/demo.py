"""The demo trio: three small real models that come from PyPI, as specs ready to launch."""

from __future__ import annotations

from lodger.hub.base import Report
from lodger.hub.packages import package_folder
from lodger.paths import Home
from lodger.spec import ModelSpec

CHAT, EMBEDDING = "SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"


def prepare_demo(home: Home, report: Report) -> tuple[ModelSpec, ...]:
    """Specs of the uids demo-chat, demo-embedding and demo-rerank, their folders complete. Blocking.

    Raises:
        MissingDependency: the packages with the models are not installed; says which and how.
        SetupProblem: the conversion of the chat model failed.
    """
    chat = str(package_folder(CHAT, home.models, report))
    vectors = str(package_folder(EMBEDDING, home.models, report))
    return (
        ModelSpec(
            uid="demo-chat",
            name=CHAT,
            path=chat,
            kind="chat",
            description="SmolLM2-135M-Instruct, a very small chat model",
        ),
        ModelSpec(
            uid="demo-embedding",
            name=EMBEDDING,
            path=vectors,
            kind="embedding",
            description="all-MiniLM-L6-v2, 384 dimensions",
        ),
        ModelSpec(
            uid="demo-rerank",
            name=EMBEDDING,
            path=vectors,
            kind="rerank",
            description="all-MiniLM-L6-v2 as a bi-encoder: cosine of query and document, mapped to 0..1",
        ),
    )
