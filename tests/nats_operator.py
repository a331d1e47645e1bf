"""A NATS operator of a test's own, with one account: JWTs and `.creds` files.

https://docs.nats.io/running-a-nats-service/nats_admin/security/jwt
"""

from __future__ import annotations

import base64
import json
import os
import secrets

import nkeys

_UNLIMITED = {
    "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1, "wildcards": True,
    "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
}  # fmt: skip


class Operator:
    """Signs the JWTs of its account and of users; times are seconds since 1970 UTC."""

    def __init__(self) -> None:
        self._operator = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_OPERATOR)
        self._account, self._system = (nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(2))

    def config(self, revoked_until: int | None = None) -> str:
        """What the server's configuration needs. Users whose JWT was issued at `revoked_until` or before are refused."""
        account: dict[str, object] = {"type": "account", "version": 2, "limits": _UNLIMITED}
        if revoked_until is not None:
            account["revocations"] = {"*": revoked_until}
        operator = self._jwt(self._operator, self._operator, {"type": "operator", "version": 2})
        signed = self._jwt(self._account, self._operator, account)
        system = self._jwt(self._system, self._operator, {"type": "account", "version": 2})
        return f"""
            operator: {operator}
            system_account: {public_key(self._system)}
            resolver: MEMORY
            resolver_preload: {{ {public_key(self._account)}: {signed}, {public_key(self._system)}: {system} }}"""

    def creds(self, issued: int = 1) -> str:
        """A new user's `.creds` file."""
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        user = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
        return (
            f"-----BEGIN NATS USER JWT-----\n{self._jwt(seed, self._account, user, issued)}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
        )

    def _jwt(self, subject_seed: bytes, issuer_seed: bytes, claims: dict[str, object], issued: int = 1) -> str:
        def part(value: object) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

        payload = {
            "jti": secrets.token_hex(8), "iat": issued, "iss": public_key(issuer_seed), "sub": public_key(subject_seed),
            "name": "test", "nats": claims,
        }  # fmt: skip
        signed = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(payload)}"
        signature = nkeys.from_seed(issuer_seed).sign(signed.encode())
        return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def public_key(seed: bytes) -> str:
    """The public key of a seed."""
    return str(nkeys.from_seed(seed).public_key.decode())
