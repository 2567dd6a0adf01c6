"""A login by e-mail and password, for RAGFlow up to 0.22, whose model routes take no API key.

Its web page encrypts the base64 of the password with a public key that every RAGFlow ships (PKCS #1 v1.5, RFC 8017
section 7.2.1). A login ends the session of the same user in a browser.
"""

from __future__ import annotations

import base64
import secrets

from lodger.errors import RagflowProblem
from lodger.ragflow.api import Ragflow, refused

# conf/public.pem of RAGFlow, the same in all its versions. It hides a password from a log, not from who holds RAGFlow.
PUBLIC_KEY = (
    "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEArq9XTUSeYr2+N1h3Afl/z8Dse/2yD0ZGrKwx+EEEcdsBLca9Ynmx3nIB5obmLlSfmskL"
    "pBo0UACBmB5rEjBp2Q2f3AG3Hjd4B+gNCG6BDaawuDlgANIhGnaTLrIqWrrcm4EMzJOnAOI1fgzJRsOOUEfaS318Eq9OVO3apEyCCt0lOQK6Puks"
    "duOjVxtltDav+guVAA068NrPYmRNabVKRNLJpL8w4D44sfth5RvZ3q9t+6RTArpEtc5sh5ChzvqPOzKGMXW83C95TxmXqpbK6olN4RevSfVjEAgC"
    "ydH6HN6OhtOQEcnrU97r9H0iZOWwbw3pVrZiUkuRD1R56Wzs2wIDAQAB"
)
_SIZE = 256  # bytes of a key of 2,048 bits
_EXPONENT = 65537
_ROUTES = ("/v1/user/login", "/api/v1/auth/login")  # the second from 0.25.1


def login(ragflow: Ragflow, email: str, password: str, *, key: str = PUBLIC_KEY) -> None:
    """Make `ragflow` ask as this user from now on.

    Raises:
        RagflowProblem: it knows no such user, or the password is another.
    """
    body = {"email": email, "password": encrypted(password, key)}
    for path in _ROUTES:
        answer = ragflow.login(path, body)
        if answer.code == 404:
            continue
        if answer.code or not answer.token:
            why = answer.message or "it gave no token"
            hint = "Is it the e-mail and password of RAGFlow's own page?" if refused(answer) else None
            raise RagflowProblem(f"RAGFlow did not let {email} in: {why}", hint=hint)
        ragflow.authorization = answer.token
        return
    raise RagflowProblem("This RAGFlow has no login that we know.", hint="From 0.23 on an API key is enough.")


def encrypted(password: str, key: str = PUBLIC_KEY) -> str:
    """As RAGFlow's web page sends it.

    Args:
        key: base64 of a SubjectPublicKeyInfo of 2,048 bits with the exponent 65537.
    """
    secret = base64.b64encode(password.encode())
    if len(secret) > _SIZE - 11:
        raise RagflowProblem(f"A password of {len(password)} characters cannot be sent.")
    padding = bytes(1 + secrets.randbelow(255) for _ in range(_SIZE - 3 - len(secret)))
    block = int.from_bytes(b"\x00\x02" + padding + b"\x00" + secret, "big")
    modulus = int.from_bytes(base64.b64decode(key)[-_SIZE - 5 : -5], "big")  # then 02 03 01 00 01: the exponent
    return base64.b64encode(pow(block, _EXPONENT, modulus).to_bytes(_SIZE, "big")).decode()
