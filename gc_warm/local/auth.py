"""The stand-in for Globus Auth: one identity, and the secrets that prove it."""

from __future__ import annotations

import base64
import hmac
import secrets
import uuid
from typing import Any

# occurs in each of Globus Compute's own scopes
_COMPUTE_SCOPE = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"


class Identity:
    """Who one is for this service, with the secrets that prove it."""

    def __init__(self) -> None:
        self.id, self.secret = str(uuid.uuid4()), secrets.token_urlsafe(32)
        self._tokens = {
            server: secrets.token_urlsafe(32) for server in ("auth.globus.org", "funcx_service")
        }
        self.person = {
            "sub": self.id,
            "id": self.id,
            "username": f"{self.id}@local",
            "name": "local",
            "email": "local@localhost",
        }

    def is_proven(self, path: str, authorization: str) -> bool:
        """Whether a request to *path* with this header comes from somebody who knows the secret."""
        if path == "/v2/oauth2/token":
            expected = "Basic " + base64.b64encode(f"{self.id}:{self.secret}".encode()).decode()
        else:
            expected = (
                "Bearer "
                + self._tokens[
                    "auth.globus.org"
                    if path.startswith(("/v2/oauth2/", "/v2/api/"))
                    else "funcx_service"
                ]
            )
        return hmac.compare_digest(authorization.encode(), expected.encode())

    def answer(self, path: str, body: Any) -> Any:
        """The part of Globus Auth that a client with a secret asks for."""
        if path == "/v2/oauth2/token":
            return self._grant(set(body.get("scope", [""])[0].split()))
        if path == "/v2/oauth2/userinfo":
            return {**self.person, "identity_set": [self.person]}
        if path == "/v2/api/identities":
            return {"identities": [self.person]}
        return {"consents": []}

    def _grant(self, scopes: set[str]) -> dict[str, Any]:
        """Exactly one token for each resource server of which a scope was asked for: the SDK insists."""
        compute = {scope for scope in scopes if _COMPUTE_SCOPE in scope}
        asked = {"auth.globus.org": scopes - compute, "funcx_service": compute}
        first, *others = [
            self._token(server, found) for server, found in asked.items() if found
        ] or [self._token("auth.globus.org", set())]
        return {**first, "other_tokens": others}

    def _token(self, server: str, scopes: set[str]) -> dict[str, Any]:
        words = {
            "scope": " ".join(sorted(scopes)),
            "token_type": "Bearer",
            "resource_server": server,
        }
        return {
            **words,
            "access_token": self._tokens[server],
            "expires_in": 172800,
            "refresh_token": None,
            "state": None,
        }
