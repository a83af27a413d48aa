# SPDX-License-Identifier: LGPL-2.1-or-later
"""deploy/kubernetes/admission.yaml, enforced by Kubernetes' own plugin, as far as there is a server that has it.

apiextensions-apiserver has the plugin. It reads policies from the API, where kube-apiserver 1.20 has none: here they are custom resources
of the same group at apiextensions-apiserver itself. NodeModules are the real ones. Nodes are those of kube-apiserver 1.20, so the
coordinator's policy is about a custom resource of that shape.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fleet.cluster import ROOT, Cluster, wait_for
from tests.fleet.proxy import Proxy
from tests.fleet.servers import EXTENSIONS, program
from tests.fleet.test_deploy import CREATED, FORBIDDEN, GROUP, NODE, OK, changed

REGISTRATION = "/apis/admissionregistration.k8s.io/"
ACCOUNT = "system:serviceaccount:kmodd-system:{}"
NODE_NAME = "authentication.kubernetes.io/node-name"
MASTERS = ("system:masters",)
"""Who may do everything, so that only policies say no."""
STAND_IN = "policies.kmodd.org"


def definition(group: str, plural: str, kind: str) -> dict[str, Any]:
    """A custom resource that may have anything in it."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {"group": group, "scope": "Cluster", "names": names, "versions": [version]},
    }


class AdmittingCluster(Cluster):
    """apiextensions-apiserver has its admission plugin as soon as there is something to read the policies from."""

    policies: Path | None = None
    """A kubeconfig."""

    def _run(self, name: str, arguments: Mapping[str, str]) -> None:
        if name == EXTENSIONS and self.policies is not None:
            others = "NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook,MutatingAdmissionPolicy"
            arguments = {
                **arguments,
                "--disable-admission-plugins": others,
                "--kubeconfig": str(self.policies),
            }
        super()._run(name, arguments)

    def define(self, group: str, plural: str, kind: str) -> None:
        """Have a custom resource served."""
        self.apply(definition(group, plural, kind))
        path = f"/apis/{group}/v1/{plural}"
        wait_for(lambda: self.request("GET", path, port=self.extensions_port)[0] == OK, 30)


def defaulted(policy: dict[str, Any]) -> dict[str, Any]:
    """With the defaults that kube-apiserver puts in; the coordinator's is about the resource in place of nodes."""
    constraints = policy["spec"].get("matchConstraints")
    if constraints is not None:
        constraints |= {"matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}}
        for rule in constraints["resourceRules"]:
            rule["scope"] = "*"
            if "nodes" in rule["resources"]:
                rule |= {"apiGroups": [STAND_IN], "resources": ["nodes"]}
    return policy


if program(EXTENSIONS) is not None:  # kube-apiserver 1.20 alone has no such policies

    @pytest.fixture(scope="module")
    def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdmittingCluster]:
        made = AdmittingCluster(tmp_path_factory.mktemp("admission"))
        try:
            made.start()
            for plural, kind in (
                ("validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
                ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
            ):
                made.define("admissionregistration.k8s.io", plural, kind)
            made.define(STAND_IN, "nodes", "Node")
            for document in yaml.safe_load_all((ROOT / "deploy/kubernetes/admission.yaml").read_text()):
                made.need(
                    "POST", made.path_of(document).rpartition("/")[0], defaulted(document), port=made.extensions_port
                )
            made.service_account("policies")
            account = {"kind": "ServiceAccount", "name": "policies", "namespace": "default"}
            role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
            binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
            made.apply({**binding, "metadata": {"name": "policies"}, "roleRef": role, "subjects": [account]})
            token = made.folder / "policies.token"
            token.write_text(made.token("policies"))
            with Proxy(made).running() as proxy:
                proxy.route = lambda line: made.extensions_port if REGISTRATION in line else made.port
                made.policies = made.write_kubeconfig("policies.conf", token_file=token, port=proxy.port)
                made.kill(EXTENSIONS)
                made.start_extensions()
                wait_for(lambda: asked(made, "kmodd-agent", "none", {})[0] == FORBIDDEN, 60)
                yield made
                made.stop()
        finally:
            made.stop()

    def asked(server: Cluster, account: str, node: str, extra: Mapping[str, str]) -> tuple[int, str]:
        """What becomes of the creation of NodeModules."""
        document = {"apiVersion": "kmodd.org/v1alpha1", "kind": "NodeModules", "metadata": {"name": node}, "spec": {}}
        status, answer = server.request(
            "POST", f"{GROUP}/nodemodules?dryRun=All", document,
            user=ACCOUNT.format(account), groups=MASTERS, extra=extra,
        )  # fmt: skip
        return status, json.dumps(answer)

    @pytest.mark.parametrize(
        ("account", "extra", "allowed"),
        [
            ("kmodd-agent", {NODE_NAME: "node-a"}, True),
            ("kmodd-agent", {NODE_NAME: "node-b"}, False),
            ("kmodd-agent", {"authentication.kubernetes.io/pod-name": "node-a"}, False),
            ("kmodd-agent", {}, False),
            ("kmodd-coordinator", {}, True),
        ],
    )
    def test_the_plugin_lets_an_agent_write_about_its_own_node(
        server: Cluster, account: str, extra: dict[str, str], allowed: bool
    ) -> None:
        status, told = asked(server, account, "node-a", extra)
        assert status == (CREATED if allowed else FORBIDDEN), told
        assert allowed or "an agent writes the status of its own node's NodeModules alone" in told

    def test_the_plugin_looks_at_statuses(server: Cluster) -> None:
        document = {"apiVersion": "kmodd.org/v1alpha1", "kind": "NodeModules", "metadata": {"name": "node-s"}}
        server.need("POST", f"{GROUP}/nodemodules", {**document, "spec": {}})
        path = f"{GROUP}/nodemodules/node-s/status?fieldManager=agent&force=true"
        for node, code in (("node-s", OK), ("node-t", FORBIDDEN)):
            status, answer = server.request(
                "PATCH", path, {**document, "status": {"kernelRelease": node}}, content="application/apply-patch+yaml",
                user=ACCOUNT.format("kmodd-agent"), groups=MASTERS, extra={NODE_NAME: node},
            )  # fmt: skip
            assert status == code, answer

    @pytest.mark.parametrize(
        ("node", "denial"),
        [
            (NODE, ""),
            (changed("metadata", "labels", "modules.kmodd.org/x", to="unavailable"), ""),
            (changed("metadata", "labels", "zone", to="2"), "labels"),
            (changed("metadata", "annotations", to=None), "annotations"),
            (changed("spec", "unschedulable", to=True), "taints"),
            (changed("status", "conditions", to=[{"type": "KernelModulesReady", "status": "False"}]), "condition"),
            (changed("status", "conditions", to=[{"type": "Ready", "status": "True"}]), ""),
            (changed("status", "capacity", "cpu", to="64"), "capacity"),
        ],
    )
    def test_the_plugin_lets_the_coordinator_change_its_labels_and_its_condition(
        server: Cluster, node: dict[str, Any], denial: str
    ) -> None:
        path, port = f"/apis/{STAND_IN}/v1/nodes", server.extensions_port
        whole = {"apiVersion": f"{STAND_IN}/v1", "kind": "Node"}
        if server.request("GET", f"{path}/a", port=port)[0] != OK:
            server.need("POST", path, {**whole, **NODE}, port=port)
        version = server.need("GET", f"{path}/a", port=port)["metadata"]["resourceVersion"]
        metadata = {**node["metadata"], "resourceVersion": version}
        document = {**whole, **node, "metadata": metadata}
        for account, expected in (("kmodd-coordinator", FORBIDDEN if denial else OK), ("other", OK)):
            status, answer = server.request(
                "PUT", f"{path}/a?dryRun=All", document, port=port, user=ACCOUNT.format(account), groups=MASTERS
            )
            assert status == expected, answer
            assert status == OK or denial in answer["message"]
