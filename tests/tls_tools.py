"""Certificates of the tests' own making."""

import datetime as dt
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)
USAGE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip


class Authority:
    """A certificate authority of the test, or, with a `host`, a server's self-signed certificate.

    Args:
        extended: its certificates have the extensions of RFC 5280, which Python demands from version 3.13 on.
    """

    def __init__(self, folder: Path, name: str, host: str = "authority", *, extended: bool = True) -> None:
        self._folder, self._name, self._extended = folder, name, extended
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(self._key, host, self._key, DAY, ca=True)
        self.file, self.key_file = self._write(folder / name, certificate, self._key)

    def issue(self, host: str, left: dt.timedelta = DAY) -> tuple[Path, Path]:
        """Files of a certificate for `host` (a name or an address) that is valid for `left`, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(key, host, self._key, left)
        return self._write(self._folder / f"{self._name}-{host}-{left.days}", certificate, key)

    @staticmethod
    def _write(base: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
        files = Path(f"{base}.crt"), Path(f"{base}.key")
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _sign(
        self, key: ec.EllipticCurvePrivateKey, host: str, signer: ec.EllipticCurvePrivateKey, left: dt.timedelta,
        ca: bool = False,
    ) -> x509.Certificate:  # fmt: skip
        now = dt.datetime.now(dt.UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)])
        subject = issuer if ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - 3 * DAY).not_valid_after(now + left)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip
        if self._extended:
            builder = _extended(builder, key, signer, ca)
        try:
            names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(host))]
        except ValueError:
            names = [x509.DNSName(host)]
        return builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(signer, hashes.SHA256())


def _extended(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, ca: bool
) -> x509.CertificateBuilder:
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(own, critical=False).add_extension(issuer, critical=False)
    return builder.add_extension(USAGE, critical=True) if ca else builder


def server_side(certificate: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """A server's; with `client_ca` it asks for a client's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
