"""A certificate authority of a test's own."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


class Pair(NamedTuple):
    """Paths of a certificate and its private key, PEM."""

    cert: str
    key: str


class Authority:
    """Signs certificates; everything is written into one folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Walbridge test {name}")])
        own = self._sign(self._name, self._key.public_key(), (), authority=True, days=1)
        self.ca = self._write(f"{name}.pem", own)

    def issue(self, name: str, *hosts: str, days: int = 1) -> Pair:
        """A certificate whose common name is `name`, for these host names; with days < 0 it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        file = f"{name}{len(list(self._folder.iterdir()))}"
        cert = self._write(f"{file}.pem", self._sign(subject, key.public_key(), hosts or (name,), authority=False, days=days))
        private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Pair(cert, self._write(f"{file}.key", private))

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, hosts: tuple[str, ...], *, authority: bool, days: int
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=5))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )  # fmt: skip
        if hosts:
            names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(PEM)

    def _write(self, name: str, data: bytes) -> str:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return str(path)
