"""Requests and answers as they travel: over pykube-ng's connections, and by the way of its addresses, certificates and proxies.

What pykube-ng does once for each request, through `requests`, is done here once for each certificate: a thousand objects are some
thousands of requests, and a request took twice the CPU so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pykube
import pykube.http
import requests
import requests.utils
import urllib3

from matrixinfer.cluster import apiserver_connections as connections

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixinfer.cluster.credentials import Access


class Wire:
    """An API server's address and the connections to it. Used by many threads."""

    def __init__(self, access: Access, *, user_agent: str, pool: int) -> None:
        self._http = _client(access, user_agent, pool)
        self._headers = {name: str(value) for name, value in self._http.session.headers.items()}
        self._way: tuple[Any, urllib3.HTTPConnectionPool, str] | None = None  # of the certificate shown last

    def send(  # noqa: PLR0913 - what an HTTP request is made of
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: tuple[float, float],
        certificate: str | tuple[str, str] | None,
    ) -> urllib3.BaseHTTPResponse:
        """Send it, and return the answer unread. `timeout`: to connect, and without a word. Raises urllib3's errors, OSError."""
        way = self._way
        if way is None or way[0] != certificate:
            way = self._way = (certificate, *self._find(certificate))
        _, pool, base = way
        connect_s, silence_s = timeout
        return pool.urlopen(
            method,
            f"{base}{path}?{urlencode(query)}" if query else base + path,
            body=body,
            headers={**self._headers, **headers},
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(connect=connect_s, read=silence_s),
            preload_content=False,
        )

    def path(self, version: str, namespace: str | None, path: str) -> str:
        """Return where the objects of an API version are, below the server's address."""
        found: str = self._http.get_kwargs(version=version, namespace=namespace, url=path)["url"]
        return found.removeprefix(self._http.url)

    def close(self) -> None:
        """Let go of connections."""
        self._http.session.close()

    def _find(self, certificate: str | tuple[str, str] | None) -> tuple[urllib3.HTTPConnectionPool, str]:
        """Return the connections on which a certificate is shown, and what precedes paths in requests over them."""
        session = self._http.session
        adapter: _Adapter = session.get_adapter(self._http.url)
        request = requests.Request("GET", self._http.url).prepare()
        pool = adapter.pool(request, session.proxies, certificate)
        base = adapter.request_url(request, session.proxies)
        return pool, str(base).removesuffix("/")


class _Adapter(pykube.http.KubernetesHTTPAdapter):  # type: ignore[misc]  # pykube-ng has no types
    """Connections that notice a dead peer, and send no write late."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Build the pools of connections."""
        super().init_poolmanager(*arguments, socket_options=connections.SOCKET_OPTIONS, **options)
        self.poolmanager.pool_classes_by_scheme = connections.POOLS

    def pool(
        self, request: requests.PreparedRequest, proxies: Mapping[str, str], certificate: str | tuple[str, str] | None
    ) -> urllib3.HTTPConnectionPool:
        """Return the connections to where a request goes, with the trust and the names that the configuration has."""
        options: dict[str, Any] = {"verify": True, "cert": certificate}
        self._setup_request_certificates(self.kube_config, request, options)
        found: urllib3.HTTPConnectionPool = self.get_connection_with_tls_context(
            request, options["verify"], proxies=proxies, cert=options["cert"]
        )
        self.cert_verify(found, request.url, options["verify"], options["cert"])
        return found


def _client(access: Access, user_agent: str, pool: int) -> pykube.HTTPClient:
    cluster: dict[str, Any] = {"server": access.server}
    if isinstance(access.verify, str):
        cluster["certificate-authority"] = access.verify
    elif not access.verify:
        cluster["insecure-skip-tls-verify"] = True
    if access.server_name:
        cluster["tls-server-name"] = access.server_name
    config = pykube.KubeConfig(
        {
            "clusters": [{"name": "it", "cluster": cluster}],
            "contexts": [{"name": "it", "context": {"cluster": "it"}}],
            "current-context": "it",
        }
    )
    http = pykube.HTTPClient(config, http_adapter=_Adapter(config, pool_maxsize=pool))
    session = http.session
    session.trust_env = False  # no .netrc may put its credentials in the place of ours
    session.proxies = {"all": access.proxy} if access.proxy else requests.utils.get_environ_proxies(access.server)
    session.headers["User-Agent"] = user_agent
    if access.impersonate:
        session.headers["Impersonate-User"] = access.impersonate
    return http
