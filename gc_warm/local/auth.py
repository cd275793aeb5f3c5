"""The stand-in for Globus Auth: identities, and the secrets that prove them."""

from __future__ import annotations

import base64
import hmac
import secrets
import uuid
from typing import Any

# occurs in each of Globus Compute's own scopes
_COMPUTE_SCOPE = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"
_AUTH_SERVER = "auth.globus.org"
_COMPUTE_SERVER = "funcx_service"
_TOKEN_LIFETIME = 172800  # seconds, as clients are told; nothing expires


class Identity:
    """An identity that a local service knows, with the secrets that prove it.

    Args:
        username: The name by which endpoints for many users map it; one of its own if None.

    Attributes:
        id: The id of the identity, and of the client that acts as it.
        secret: The client's secret.
        person: The description of the identity that Globus Auth would give.
    """

    def __init__(self, username: str | None = None) -> None:
        self.id = str(uuid.uuid4())
        self.secret = secrets.token_urlsafe(32)
        self._tokens = {
            server: secrets.token_urlsafe(32) for server in (_AUTH_SERVER, _COMPUTE_SERVER)
        }
        self.person = {
            "sub": self.id,
            "id": self.id,
            "username": username or f"{self.id}@local",
            "name": "local",
            "email": "local@localhost",
            "status": "used",  # only then is it mapped to a local user
        }

    def is_proven(self, path: str, authorization: str) -> bool:
        """Return whether a request comes from somebody who knows the secret that it takes.

        Args:
            path: The path of the request.
            authorization: The value of its header of that name.

        Returns:
            True for the client's own secret where it asks for tokens, and for the token of the
            right resource server elsewhere.
        """
        if path == "/v2/oauth2/token":
            credentials = base64.b64encode(f"{self.id}:{self.secret}".encode()).decode()
            expected = f"Basic {credentials}"
        elif is_for_auth(path):
            expected = f"Bearer {self._tokens[_AUTH_SERVER]}"
        else:
            expected = f"Bearer {self._tokens[_COMPUTE_SERVER]}"

        return hmac.compare_digest(authorization.encode(), expected.encode())

    def answer(self, path: str, body: Any) -> Any:
        """Return the answer of Globus Auth, for the part that a client with a secret asks for.

        Args:
            path: The path of the request, one for which `is_for_auth` is true.
            body: The decoded body of the request.

        Returns:
            The document of the answer.
        """
        if path == "/v2/oauth2/token":
            return self._grant(set(body.get("scope", [""])[0].split()))
        if path == "/v2/oauth2/userinfo":
            return {**self.person, "identity_set": [self.person]}
        if path == "/v2/api/identities":
            return {"identities": [self.person]}
        return {"consents": []}

    def _grant(self, scopes: set[str]) -> dict[str, Any]:
        """Return exactly one token for each resource server of the scopes: the SDK insists."""
        compute = {scope for scope in scopes if _COMPUTE_SCOPE in scope}
        wanted = {_AUTH_SERVER: scopes - compute, _COMPUTE_SERVER: compute}
        tokens = [self._token(server, asked) for server, asked in wanted.items() if asked]

        first, *others = tokens or [self._token(_AUTH_SERVER, set())]
        return {**first, "other_tokens": others}

    def _token(self, server: str, scopes: set[str]) -> dict[str, Any]:
        return {
            "scope": " ".join(sorted(scopes)),
            "token_type": "Bearer",
            "resource_server": server,
            "access_token": self._tokens[server],
            "expires_in": _TOKEN_LIFETIME,
            "refresh_token": None,
            "state": None,
        }


def is_for_auth(path: str) -> bool:
    """Return whether Globus Auth, and not Globus Compute, answers requests to a path.

    Args:
        path: The path of a request.

    Returns:
        True for Globus Auth's paths.
    """
    return path.startswith(("/v2/oauth2/", "/v2/api/"))
