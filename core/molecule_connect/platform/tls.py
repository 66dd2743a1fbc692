"""Proxies, trusted certificates and client certificates of connections."""

import importlib.util
import os
import re
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from molecule_connect import files
from molecule_connect.config.settings import USUAL_TLS, Tls
from molecule_connect.errors import ConfigError
from molecule_connect.platform.address import ApiAddress
from molecule_connect.platform.http1 import KEEPALIVE
from molecule_connect.platform.httpx_import import httpx

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+\Z")
_LIKE_A_PROXY = "write it like http://proxy.example:3128, or name the platform's host in NO_PROXY"


class Trust:
    """Options of transports. Certificates are read once, and only if they are needed."""

    def __init__(self) -> None:
        self._contexts: dict[Tls, ssl.SSLContext] = {}

    def options(self, address: ApiAddress, connections: int | None, tls: Tls = USUAL_TLS) -> dict[str, Any]:
        """Return the options of an httpx transport with at most *connections* to *address*.

        Raises:
            ConfigError: A proxy, certificate or key can't be used. The text names the variable or the file.
        """
        proxy = proxy_for(address)
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEPALIVE
        )
        return {"verify": self._tls(address, proxy, tls), "limits": limits, "proxy": proxy, "trust_env": False}

    def check(self, address: ApiAddress, tls: Tls = USUAL_TLS) -> None:
        """Raise the errors of ``options``."""
        self.options(address, None, tls)

    def _tls(self, address: ApiAddress, proxy: str | None, tls: Tls) -> ssl.SSLContext:
        # Reading the CA certificates takes 14 ms, and plain http needs none.
        if address.origin.startswith("http:") and proxy is None:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if tls not in self._contexts:
            self._contexts[tls] = _context(tls)
        return self._contexts[tls]


def proxy_for(
    address: ApiAddress,
    *,
    proxies: Callable[[], dict[str, str]] = urllib.request.getproxies,
    bypass: Callable[[str], bool] = urllib.request.proxy_bypass,
) -> str | None:
    """Return the proxy for *address* from the environment; None for loopback addresses.

    Raises:
        ConfigError: It can't be used.
    """
    parts = urlsplit(address.origin)
    if address.is_loopback:
        return None
    _check_exceptions()
    if bypass(parts.hostname or ""):
        return None
    known = proxies()
    proxy = known.get(parts.scheme) or known.get("all")
    if proxy is None:
        return None
    return _checked_proxy(proxy if "://" in proxy else f"http://{proxy}", proxy_source(address.origin))


def proxy_source(origin: str) -> str:
    """Return the name of the variable with the proxy for *origin*, or ""."""
    names = (f"{urlsplit(origin).scheme}_proxy", "all_proxy")
    spelled = (each for name in names for each in (name, name.upper()))
    return next((name for name in spelled if os.environ.get(name)), "")


def _checked_proxy(proxy: str, variable: str) -> str:
    """Check and return *proxy*. No error quotes it, because it may contain a password."""
    source = variable or "the proxy settings of this machine"
    if not proxy.isprintable() or " " in proxy:
        raise ConfigError(f"{source} holds a line ending or a blank", hint=_LIKE_A_PROXY)
    try:
        parts = urlsplit(proxy)
        host, _ = parts.hostname, parts.port
        httpx.URL(proxy)
    except (ValueError, httpx.InvalidURL):
        raise ConfigError(f"{source} has no host and port that can be used", hint=_LIKE_A_PROXY) from None
    if not host or parts.scheme not in _PROXY_SCHEMES:
        raise ConfigError(f"{source} is not the address of a proxy", hint=_LIKE_A_PROXY)
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConfigError(
            f"{source} names a SOCKS proxy, and the package for SOCKS is not installed",
            hint='run: python -m pip install "httpx[socks]"',
        )
    return proxy


def _check_exceptions() -> None:
    for name in ("no_proxy", "NO_PROXY"):
        if not os.environ.get(name, "").isprintable():
            raise ConfigError(
                f"{name} contains a line ending or another invisible character",
                hint="separate hosts by commas, like localhost,platform.example",
            )


def _context(tls: Tls) -> ssl.SSLContext:
    _check_key_log()
    if tls.ca_file is not None:
        context = _trusting(str(tls.ca_file), None, source=f"the CA file {tls.ca_file}")
    elif path := os.environ.get("SSL_CERT_FILE"):
        context = _trusting(path, None, source=f"SSL_CERT_FILE ({path})")
    elif path := os.environ.get("SSL_CERT_DIR"):
        _check_folders(path)
        context = _trusting(None, path, source=f"SSL_CERT_DIR ({path})")
    else:
        context = httpx.create_ssl_context(trust_env=False)
    if tls.client_cert is not None:
        _load_client_certificate(context, tls.client_cert, tls.client_key)
    elif tls.client_key is not None:
        raise ConfigError(
            "a client key was given without a certificate", hint="pass the certificate with --client-cert"
        )
    return context


def _trusting(file: str | None, folder: str | None, *, source: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"{source} cannot be used: {_reason(exc, 'it holds no certificates')}",
            hint="pass a file with certificates in PEM format",
        ) from exc


def _check_folders(path: str) -> None:
    # OpenSSL accepts any folder, and then trusts no certificate.
    hint = "set it to folders that 'openssl rehash' was run on, or set SSL_CERT_FILE to a file"
    try:
        names = [name for folder in path.split(":") if folder for name in os.listdir(folder)]  # noqa: PTH208
    except OSError as exc:
        raise ConfigError(f"SSL_CERT_DIR ({path}) cannot be used: {exc.strerror}", hint=hint) from exc
    if not any(_HASHED.match(name) for name in names):
        raise ConfigError(f"SSL_CERT_DIR ({path}) holds no certificates under their hashes", hint=hint)


def _check_key_log() -> None:
    path = os.environ.get("SSLKEYLOGFILE")
    if not path:
        return
    try:
        Path(path).open("ab").close()
    except OSError as exc:
        raise ConfigError(
            f"SSLKEYLOGFILE ({path}) cannot be written: {exc.strerror}",
            hint="unset it, or set it to a writable file to debug connections",
        ) from exc


def _load_client_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    secret = key or certificate
    try:
        if exposed := files.exposure(secret.stat(), secret):
            raise ConfigError(f"the client key {secret} {exposed[0]}", hint=exposed[1])
        # Without this, OpenSSL asks for a password at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as exc:
        named = str(certificate) if key is None else f"{certificate} with the key {key}"
        reason = _reason(exc, "they don't belong together, or one is not in PEM format without a password")
        raise ConfigError(
            f"the client certificate {named} cannot be used: {reason}",
            hint="pass a PEM file with certificate and key, or the certificate with --client-cert and the key with"
            " --client-key",
        ) from exc


def _reason(exc: Exception, otherwise: str) -> str:
    """Return why a file can't be used. OpenSSL's own messages are too cryptic."""
    if isinstance(exc, ssl.SSLError) or not isinstance(exc, OSError):
        return otherwise
    return exc.strerror or type(exc).__name__
