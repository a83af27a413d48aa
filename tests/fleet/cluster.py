# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real Kubernetes API on loopback: etcd, kube-apiserver, and apiextensions-apiserver for the group kmodd.org where there is one.

There are no kubelet, scheduler or controllers: Nodes and Pods are objects that a test writes, and nothing collects garbage.
"""

import base64
import datetime as dt
import http.client
import ipaddress
import json
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.fleet.servers import EXTENSIONS, PROGRAMS, program

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "deploy/kubernetes/crds.yaml"
GROUP, VERSION = "kmodd.org", "v1alpha1"
START = 60.0
"""Seconds a server has to become ready."""


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(one.getsockname()[1]) for one in listening]
    finally:
        for one in listening:
            one.close()


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = self._write(f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, organization: str = "", *, names: Sequence[str] = ()) -> tuple[Path, Path]:
        """Certificate and key for a user of this name and group; with `names`, for a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organization:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        certificate = (
            self._builder(x509.Name(attributes), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, ("localhost", *names))]
                ),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        file = f"{name.replace(':', '-')}-{self.file.stem}"
        return (
            self._write(f"{file}.crt", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{file}.key", _private(key)),
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        ours = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), critical=False)
        )

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


class Cluster:
    """The servers as processes, with an administrator's client."""

    def __init__(self, folder: Path, *, watch_cache: bool = True) -> None:
        """Prepare in this folder; nothing runs yet. Without a cache of watches, a compaction of etcd shows at once."""
        self.folder = folder
        self._watch_cache = watch_cache
        self._programs = {name: program(name) for name in (*PROGRAMS, EXTENSIONS)}
        if missing := [name for name in PROGRAMS if self._programs[name] is None]:
            raise FileNotFoundError(f"{' and '.join(missing)}: set KUBEBUILDER_ASSETS, or run: make setup")
        self.modern = self._programs[EXTENSIONS] is not None
        """The group kmodd.org is served by today's machinery: CEL, strict fields."""
        self._etcd_port, self._etcd_peer, self.port, self.extensions_port = free_ports(4)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._authority = Authority(folder, "kubernetes")
        self._front = Authority(folder, "front-proxy")
        self.server_certificate = self._authority.issue(
            "kube-apiserver", names=("kubernetes", "kubernetes.default.svc")
        )
        self._proxy = self._front.issue("front-proxy-client")
        self._service_key = folder / "service-accounts.key"
        self._service_key.write_bytes(_private(ec.generate_private_key(ec.SECP256R1())))
        self.ca = self._authority.file
        self.admin = self._authority.issue("kubernetes-admin", "system:masters")
        self.kubeconfig = self.write_kubeconfig("admin.conf", certificate=self.admin)
        """Kubeconfig of an administrator."""
        self._context = ssl.create_default_context(cafile=str(self.ca))
        self._context.load_cert_chain(*self.admin)

    # --- processes ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything, and create the custom resource definitions."""
        self.start_etcd()
        self.start_server()
        if self.modern:
            self._aggregate()
            self.start_extensions()
        self.apply(CRDS)
        wait_for(self._group_served, START)

    def start_etcd(self) -> None:
        """Start etcd with the data that is there."""
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._etcd_peer}"
        arguments = {
            "--data-dir": str(self.folder / "etcd"),
            "--listen-client-urls": client,
            "--advertise-client-urls": client,
            "--listen-peer-urls": peer,
            "--initial-advertise-peer-urls": peer,
            "--initial-cluster": f"default={peer}",
            "--log-level": "error",
            "--unsafe-no-fsync": "true",
            # Thousands of nodes write more than the default of 2 GB until the first compaction.
            "--quota-backend-bytes": str(8 << 30),
        }
        self._run("etcd", arguments)
        wait_for(lambda: _answers(self._etcd_port, "/health"), START)

    def start_server(self) -> None:
        """Start kube-apiserver."""
        arguments = {
            "--etcd-servers": f"http://127.0.0.1:{self._etcd_port}",
            "--bind-address": "127.0.0.1",
            "--advertise-address": "127.0.0.1",
            "--secure-port": str(self.port),
            "--tls-cert-file": str(self.server_certificate[0]),
            "--tls-private-key-file": str(self.server_certificate[1]),
            "--client-ca-file": str(self.ca),
            "--service-account-issuer": "https://kubernetes.default.svc",
            "--service-account-signing-key-file": str(self._service_key),
            "--service-account-key-file": str(self._service_key),
            "--service-cluster-ip-range": "10.0.0.0/24",
            "--watch-cache": str(self._watch_cache).lower(),
            "--authorization-mode": "Node,RBAC",
            "--disable-admission-plugins": "ServiceAccount",
            "--proxy-client-cert-file": str(self._proxy[0]),
            "--proxy-client-key-file": str(self._proxy[1]),
            "--requestheader-client-ca-file": str(self._front.file),
            "--requestheader-allowed-names": "front-proxy-client",
            "--requestheader-username-headers": "X-Remote-User",
            "--requestheader-group-headers": "X-Remote-Group",
            "--requestheader-extra-headers-prefix": "X-Remote-Extra-",
        }
        self._run("kube-apiserver", arguments)
        wait_for(lambda: self._ready("/readyz"), START)

    def start_extensions(self) -> None:
        """Start apiextensions-apiserver, which serves the group kmodd.org behind kube-apiserver."""
        certificate, key = self._authority.issue("apiextensions", names=("extensions.default.svc",))
        plugins = (
            "NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook,"
            "ValidatingAdmissionPolicy,MutatingAdmissionPolicy"
        )
        arguments = {
            "--etcd-servers": f"http://127.0.0.1:{self._etcd_port}",
            "--bind-address": "127.0.0.1",
            "--secure-port": str(self.extensions_port),
            "--tls-cert-file": str(certificate),
            "--tls-private-key-file": str(key),
            "--client-ca-file": str(self.ca),
            "--kubeconfig": str(self.kubeconfig),
            "--authentication-kubeconfig": str(self.kubeconfig),
            "--authorization-kubeconfig": str(self.kubeconfig),
            "--authentication-skip-lookup": "true",
            "--requestheader-client-ca-file": str(self._front.file),
            "--requestheader-allowed-names": "front-proxy-client",
            "--requestheader-username-headers": "X-Remote-User",
            "--requestheader-group-headers": "X-Remote-Group",
            "--requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "--enable-priority-and-fairness": "false",
            "--watch-cache": str(self._watch_cache).lower(),
            "--disable-admission-plugins": plugins,
        }
        self._run(EXTENSIONS, arguments)
        wait_for(lambda: self._ready("/readyz", port=self.extensions_port), START)

    def _run(self, name: str, arguments: Mapping[str, str]) -> None:
        executable = self._programs[name]
        assert executable is not None
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [executable, *(f"{option}={value}" for option, value in arguments.items())],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder)},
            )

    @property
    def pids(self) -> dict[str, int]:
        """Of the servers that run."""
        return {name: process.pid for name, process in self._processes.items()}

    def kill(self, name: str) -> None:
        """End a server at once (SIGKILL)."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def pause(self, name: str) -> None:
        """Stop a server without ending its connections (SIGSTOP)."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a stopped server go on."""
        self._processes[name].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End everything."""
        for name in reversed(list(self._processes)):
            self.kill(name)

    def log(self, name: str, size: int = 3000) -> str:
        """The end of what a server logged."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-size:]

    # --- the API as an administrator ---------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content: str = "application/json",
        accept: str = "application/json",
        user: str = "",
        groups: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> tuple[int, Any]:
        """(status, answer) of one request; with `user`, as that user of these groups and with this `extra` (impersonation)."""
        headers = {"Content-Type": content, "Accept": accept}
        if user:
            headers["Impersonate-User"] = user
        headers |= {f"Impersonate-Extra-{quote(key, safe='')}": value for key, value in (extra or {}).items()}
        connection = http.client.HTTPSConnection("127.0.0.1", port or self.port, context=self._context, timeout=30)
        with closing(connection):
            data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
            connection.putrequest(method, path)
            for name, value in headers.items():
                connection.putheader(name, value)
            for group in groups:
                connection.putheader("Impersonate-Group", group)
            if data is not None:
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            answer = connection.getresponse()
            text = answer.read()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text.decode(errors="replace")

    def need(self, method: str, path: str, body: object = None, **more: Any) -> Any:
        """The answer of a request that succeeds."""
        status, answer = self.request(method, path, body, **more)
        assert status < http.client.BAD_REQUEST, (method, path, status, answer)
        return answer

    def apply(self, file: Path | str | Mapping[str, Any]) -> None:
        """Server-side apply each document of a file, or one object."""
        documents = [file] if isinstance(file, Mapping) else list(yaml.safe_load_all(Path(file).read_text()))
        for document in documents:
            if document is None:
                continue
            path = f"{self.path_of(document)}?fieldManager=tests&force=true"
            definition = document["kind"] == "CustomResourceDefinition"
            port = self.extensions_port if definition and self.modern else 0
            body = for_an_old_server(document) if definition and not self.modern else document
            self.need("PATCH", path, body, content="application/apply-patch+yaml", port=port)

    def path_of(self, document: Mapping[str, Any]) -> str:
        """Where an object is, by its apiVersion, kind and name."""
        group, _, version = str(document["apiVersion"]).rpartition("/")
        base = f"/apis/{group}/{version}" if group else f"/api/{version}"
        kind, meta = str(document["kind"]), document["metadata"]
        plural = {
            "NodeModules": "nodemodules",
            "NetworkPolicy": "networkpolicies",
            "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
        }.get(kind, kind.lower() + "s")
        space = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
        return f"{base}{space}/{plural}/{meta['name']}"

    def service_account(self, name: str, namespace: str = "default") -> None:
        """Make a service account."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": namespace},
            }
        )

    def token(self, account: str, namespace: str = "default", *, seconds: int = 3600) -> str:
        """A token of a service account; the server gives at least 600 seconds."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.need("POST", path, body)["status"]["token"])

    def write_kubeconfig(
        self,
        name: str,
        *,
        certificate: tuple[Path, Path] | None = None,
        token_file: Path | None = None,
        port: int = 0,
    ) -> Path:
        """A kubeconfig with a certificate or a file with a token; `port` is that of a proxy in front of the server."""
        user: dict[str, str] = {}
        if certificate:
            user = {"client-certificate": str(certificate[0]), "client-key": str(certificate[1])}
        if token_file:
            user = {"tokenFile": str(token_file)}
        cluster = {"server": f"https://127.0.0.1:{port or self.port}", "certificate-authority": str(self.ca)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "tests", "user": user}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        }
        path = self.folder / name
        path.write_text(yaml.safe_dump(content))
        return path

    def certificate(self, name: str, organization: str = "") -> tuple[Path, Path]:
        """Certificate and key of a user."""
        return self._authority.issue(name, organization)

    def compact(self) -> int:
        """Forget every version of etcd but the present one: watches from an older one get 410; the present revision."""
        key = base64.b64encode(b"\0").decode()
        revision = int(_post(self._etcd_port, "/v3/kv/range", {"key": key})["header"]["revision"])
        _post(self._etcd_port, "/v3/kv/compaction", {"revision": revision, "physical": True})
        return revision

    # --- inside ------------------------------------------------------------------------------------------------------

    def _aggregate(self) -> None:
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "extensions", "namespace": "default"},
            "spec": {
                "type": "ExternalName",
                "externalName": "localhost",
                "ports": [{"port": self.extensions_port, "protocol": "TCP"}],
            },
        }
        api = {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": {
                "group": GROUP,
                "version": VERSION,
                "groupPriorityMinimum": 1000,
                "versionPriority": 10,
                "caBundle": base64.b64encode(self.ca.read_bytes()).decode(),
                "service": {"name": "extensions", "namespace": "default", "port": self.extensions_port},
            },
        }
        wait_for(lambda: self.request("GET", "/api/v1/namespaces/default")[0] == http.client.OK, START)
        self.need("POST", "/api/v1/namespaces/default/services", service)
        self.need("POST", "/apis/apiregistration.k8s.io/v1/apiservices", api)

    def _group_served(self) -> bool:
        return all(
            self.request("GET", f"/apis/{GROUP}/{VERSION}/{plural}")[0] == http.client.OK
            for plural in ("modulesets", "nodemodules")
        )

    def _ready(self, path: str, *, port: int = 0) -> bool:
        name = EXTENSIONS if port else "kube-apiserver"
        assert self._processes[name].poll() is None, self.log(name)
        try:
            return self.request("GET", path, port=port)[0] == http.client.OK
        except OSError:
            return False


def for_an_old_server(schema: Any) -> Any:
    """The same for Kubernetes 1.20: without CEL, which it does not know, and with null where it makes null of what is given.

    It takes an empty text for null, and server-side apply makes null of a list whose last row goes.
    """
    if isinstance(schema, list):
        return [for_an_old_server(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: for_an_old_server(value) for key, value in schema.items() if key != "x-kubernetes-validations"}
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"]["nullable"] = True
    if made.get("type") == "array":
        made["nullable"] = True
    return made


def _answers(port: int, path: str) -> bool:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
    except OSError:
        return False


def _post(port: int, path: str, body: object) -> Any:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == http.client.OK, text
        return json.loads(text)


def wait_for(condition: Any, seconds: float = 15.0) -> None:
    """Until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def cluster(folder: Path, *, watch_cache: bool = True) -> Iterator[Cluster]:
    """A running cluster with the custom resource definitions."""
    made = Cluster(folder, watch_cache=watch_cache)
    try:
        made.start()
        yield made
    finally:
        made.stop()
