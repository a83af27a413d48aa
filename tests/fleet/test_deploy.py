# SPDX-License-Identifier: LGPL-2.1-or-later
"""deploy/kubernetes: what kustomize makes of it is taken by a real API server, gives the rights it should and no others, and says what
the documentation says. Admission policies need a newer server than there is here; the real CEL engine evaluates their expressions in
the schema of a custom resource instead (and the real plugin some of it: test_admission.py). The rules of polkit are run by the engine
that polkitd uses."""

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kmodd.fleet.resources import parse_module_set
from tests.fleet.cluster import ROOT, Cluster, wait_for
from tests.fleet.servers import EXTENSIONS, program

DEPLOY = ROOT / "deploy/kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")
AGENT = "system:serviceaccount:kmodd-system:kmodd-agent"
GROUP = "/apis/kmodd.org/v1alpha1"
POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
FORBIDDEN, UNPROCESSABLE, CREATED, OK = 403, 422, 201, 200


def built(folder: Path = DEPLOY) -> list[dict[str, Any]]:
    """What kustomize makes of it."""
    answer = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(answer.stdout))


def find(kind: str, name: str, documents: list[dict[str, Any]]) -> dict[str, Any]:
    return next(each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name))


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return built()


@pytest.fixture(scope="module")
def applied(kubernetes: Cluster, documents: list[dict[str, Any]]) -> Cluster:
    """A cluster to which everything was applied by kubectl, but for what this server cannot have."""
    for namespace in ("storage",):
        kubernetes.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    mine = [each for each in documents if each["kind"] not in (*POLICIES, "CustomResourceDefinition")]
    subprocess.run(
        [KUBECTL, "--kubeconfig", kubernetes.kubeconfig, "apply", "--validate=false", "-f", "-"],
        input=yaml.safe_dump_all(mine),
        text=True,
        check=True,
        capture_output=True,
    )
    return kubernetes


def test_kustomize_makes_every_object_of_every_file(documents: list[dict[str, Any]]) -> None:
    files = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    assert set(files) == {path.name for path in DEPLOY.glob("*.yaml")} - {"kustomization.yaml"}
    written = [each for name in files for each in yaml.safe_load_all((DEPLOY / name).read_text()) if each]
    assert len(documents) == len(written)


def test_the_server_takes_all_of_it(applied: Cluster, documents: list[dict[str, Any]]) -> None:
    for document in documents:
        if document["kind"] in POLICIES:
            continue
        port = applied.extensions_port if document["kind"] == "CustomResourceDefinition" and applied.modern else 0
        found = applied.need("GET", applied.path_of(document), port=port)
        if "spec" in document and document["kind"] in ("DaemonSet", "Deployment"):
            # Nothing that was written is unknown to the server, which would leave it out.
            missing = list(lost(document["spec"], found["spec"], "spec"))
            assert not missing, (document["kind"], missing)


def lost(written: Any, found: Any, path: str) -> Iterator[str]:
    """Paths of what was written and is not there."""
    if isinstance(written, dict):
        for key, value in written.items():
            if not isinstance(found, dict) or key not in found:
                yield f"{path}.{key}"
            else:
                yield from lost(value, found[key], f"{path}.{key}")
    elif isinstance(written, list):
        if not isinstance(found, list) or len(found) != len(written):
            yield path
        else:
            for number, (one, other) in enumerate(zip(written, found, strict=True)):
                yield from lost(one, other, f"{path}[{number}]")


@pytest.mark.parametrize("path", sorted((DEPLOY / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_taken_by_server_and_coordinator(applied: Cluster, path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        plural = {"ModuleSet": f"{GROUP}/modulesets"}.get(document["kind"])
        if plural is None:
            namespace = document["metadata"]["namespace"]
            plural = f"/api/v1/namespaces/{namespace}/pods"
        status, answer = applied.request("POST", f"{plural}?dryRun=All&fieldValidation=Strict", document)
        assert status == CREATED, answer
        if document["kind"] == "ModuleSet":
            parse_module_set(answer)


def test_the_agent_has_no_privilege_and_mounts_the_bus_and_its_state(documents: list[dict[str, Any]]) -> None:
    pod = find("DaemonSet", "kmodd-agent", documents)["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {each["hostPath"]["path"]: each["hostPath"]["type"] for each in pod["volumes"]} == {
        "/run/dbus/system_bus_socket": "Socket",
        "/var/lib/kmodd-agent": "Directory",
    }
    number = re.search(r"^u kmodd-agent (\d+) ", (DEPLOY / "node/kmodd-agent.sysusers").read_text(), re.MULTILINE)
    assert number
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == int(number[1])
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_image_holds_what_the_programs_need(tmp_path: Path) -> None:
    """What the Containerfile copies, laid out as it says; the image itself is not built here."""
    lines = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    for line in lines:
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            for source in sources:
                folder = target.endswith("/") or len(sources) > 1
                place = tmp_path / target.strip("/") / (Path(source).name if folder else "")
                place.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-r", ROOT / source, place], check=True)
    package = tmp_path / "usr/lib/kmodd"
    assert any("@PKGDIR@,/usr/lib/kmodd," in line for line in lines)
    for name in ("kmodd-agent", "kmodd-coordinator"):
        program = tmp_path / "tmp" / f"{name}.in"
        text = program.read_text().replace("@PYTHON@", sys.executable).replace("@PKGDIR@", str(package))
        program.write_text(text)
        done = subprocess.run(
            [sys.executable, "-I", program, "--version"], cwd="/", capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"{name} ")
    reads = "from kmodd.dbus.interface_xml import installed; installed()"
    script = f"import sys; sys.path.insert(0, {str(package)!r}); {reads}"
    subprocess.run([sys.executable, "-I", "-c", script], cwd="/", check=True)


def test_the_host_network_is_a_component(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    subprocess.run(["cp", "-r", DEPLOY, folder], check=True)
    main = folder / "kustomization.yaml"
    main.write_text(main.read_text().replace("# components:", "components:"))
    pod = find("DaemonSet", "kmodd-agent", built(folder))["spec"]["template"]["spec"]
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "Default")


def test_an_agent_reads_node_modules_and_writes_their_status_alone(applied: Cluster) -> None:
    name = "deploy-agent"
    document = {"apiVersion": "kmodd.org/v1alpha1", "kind": "NodeModules", "metadata": {"name": name}}
    applied.need("POST", f"{GROUP}/nodemodules", document)
    path = f"{GROUP}/nodemodules/{name}"
    status = {**document, "status": {"agentVersion": "1"}}

    def ask(method: str, path: str, body: object = None, content: str = APPLY) -> int:
        return applied.request(method, path, body, user=AGENT, content=content)[0]

    assert ask("GET", path) == OK
    assert ask("GET", f"{GROUP}/nodemodules?fieldSelector=metadata.name%3D{name}") == OK
    assert ask("PATCH", f"{path}/status?fieldManager=kmodd-agent&force=true", status) == OK
    for method, other in (
        ("PATCH", f"{path}?fieldManager=kmodd-agent&force=true"),
        ("POST", f"{GROUP}/nodemodules"),
        ("DELETE", path),
        ("GET", f"{GROUP}/modulesets"),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/pods"),
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/namespaces/kmodd-system/configmaps"),
        ("POST", "/api/v1/namespaces/default/events"),
        ("POST", "/api/v1/namespaces/kmodd-system/serviceaccounts/kmodd-coordinator/token"),
    ):
        body = document if method in ("PATCH", "POST") else None
        assert ask(method, other, body, APPLY if method == "PATCH" else "application/json") == FORBIDDEN, (
            method,
            other,
        )
    applied.need("DELETE", path)


def test_every_right_is_used(documents: list[dict[str, Any]]) -> None:
    """Least rights: no wildcard, and no rule beyond what the two programs ask for."""
    rules = {
        (each["metadata"]["name"], group, resource, verb)
        for each in documents
        if each["kind"] in ("Role", "ClusterRole")
        for rule in each["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert not [rule for rule in rules if "*" in rule]
    assert {(resource, verb) for _, _, resource, verb in rules if verb in ("delete", "deletecollection", "update")} == {
        ("leases", "update")
    }
    assert not [rule for rule in rules if rule[2] in ("secrets", "configmaps", "pods/exec", "serviceaccounts/token")]


# --- admission -------------------------------------------------------------------------------------------------------

TEXTS = {"type": "object", "maxProperties": 8, "additionalProperties": {"type": "string", "maxLength": 64}}


def rows(*names: str) -> dict[str, Any]:
    item = {"type": "object", "properties": {name: {"type": "string", "maxLength": 64} for name in names}}
    return {"type": "array", "maxItems": 8, "items": item}


OBJECT = {
    "type": "object",
    "properties": {
        "metadata": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 64},
                "labels": TEXTS,
                "annotations": TEXTS,
            },
        },
        "spec": {
            "type": "object",
            "properties": {"unschedulable": {"type": "boolean"}, "taints": rows("key", "effect")},
        },
        "status": {
            "type": "object",
            "properties": {
                "conditions": rows("type", "status", "message"),
                "capacity": TEXTS,
                "allocatable": TEXTS,
                "addresses": rows("type", "address"),
            },
        },
    },
}
EXTRA = {
    "type": "object",
    "maxProperties": 8,
    "additionalProperties": {"type": "array", "maxItems": 4, "items": {"type": "string", "maxLength": 64}},
}
REQUEST = {
    "type": "object",
    "properties": {
        "userInfo": {
            "type": "object",
            "properties": {"username": {"type": "string", "maxLength": 128}, "extra": EXTRA},
        }
    },
}


def carried(expression: str, variables: Mapping[str, str]) -> str:
    """An expression of a policy as a rule of a schema whose object carries what the policy sees."""
    for _ in variables:
        for name, text in variables.items():
            expression = re.sub(rf"\bvariables\.{name}\b", lambda _, text=text: f"({text})", expression)  # type: ignore[misc]
    # The same type on both sides of a comparison, as in a policy: the old object is that of the document's last version.
    expression = re.sub(r"(?<![\w.'])oldObject\b(?=\.)", "oldSelf.object", expression)
    return re.sub(r"(?<![\w.'])(object|request)\b(?=\.)", r"self.\1", expression)


@pytest.fixture(scope="module")
def admission(applied: Cluster, documents: list[dict[str, Any]]) -> Callable[[str, dict[str, Any]], str]:
    """Ask a policy about an update of NODE: the message of its denial, or nothing."""
    for policy in (each for each in documents if each["kind"] == "ValidatingAdmissionPolicy"):
        spec, name = policy["spec"], policy["metadata"]["name"]
        variables = {each["name"]: each["expression"] for each in spec.get("variables", [])}
        (condition,) = spec["matchConditions"]
        rules = [
            {
                "rule": f"!({carried(condition['expression'], {})}) || ({carried(each['expression'], variables)})",
                "message": each["message"],
            }
            for each in spec["validations"]
        ]
        schema = {
            "type": "object",
            "properties": {"request": REQUEST, "object": OBJECT},
            "x-kubernetes-validations": rules,
        }
        plural = name.removeprefix("kmodd-") + "s"
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.policies.kmodd.org"},
            "spec": {
                "group": "policies.kmodd.org",
                "scope": "Cluster",
                "names": {"plural": plural, "kind": plural.capitalize()},
                "versions": [
                    {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}},
                ],
            },
        }
        applied.apply(definition)

    def ask(policy: str, seen: dict[str, Any]) -> str:
        plural, port = policy.removeprefix("kmodd-") + "s", applied.extensions_port
        path = f"/apis/policies.kmodd.org/v1/{plural}"
        wait_for(lambda: applied.request("GET", path, port=port)[0] == OK)
        document = {"apiVersion": "policies.kmodd.org/v1", "kind": plural.capitalize(), "metadata": {"name": "request"}}
        if applied.request("GET", f"{path}/request", port=port)[0] != OK:
            applied.need("POST", path, {**document, "request": user("nobody"), "object": NODE}, port=port)
        version = applied.need("GET", f"{path}/request", port=port)["metadata"]["resourceVersion"]
        document["metadata"] = {"name": "request", "resourceVersion": version}
        query = "?dryRun=All&fieldValidation=Strict"
        status, answer = applied.request("PUT", f"{path}/request{query}", {**document, **seen}, port=port)
        assert status in (OK, UNPROCESSABLE), answer
        return "" if status == OK else str(answer["message"])

    return ask


def user(name: str, **extra: list[str]) -> dict[str, Any]:
    return {
        "userInfo": {
            "username": name,
            "extra": {f"authentication.kubernetes.io/{k.replace('_', '-')}": v for k, v in extra.items()},
        }
    }


NODE: dict[str, Any] = {
    "metadata": {"name": "a", "labels": {"zone": "1", "modules.kmodd.org/x": "ready"}, "annotations": {"n": "1"}},
    "spec": {"taints": [{"key": "t", "effect": "NoSchedule"}]},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "KernelModulesReady", "status": "True"}],
        "capacity": {"cpu": "2"},
        "allocatable": {"cpu": "2"},
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
    },
}


def changed(*path: str, to: Any) -> dict[str, Any]:
    """NODE with one thing changed; None removes it."""
    document: dict[str, Any] = yaml.safe_load(yaml.safe_dump(NODE))
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    if to is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return document


if program(EXTENSIONS) is not None:  # kube-apiserver 1.20 alone has no CEL

    @pytest.mark.parametrize(
        ("request_", "allowed"),
        [
            (user(AGENT, node_name=["node-a"]), True),
            (user(AGENT, node_name=["node-b"]), False),
            (user(AGENT, node_name=["node-a", "node-b"]), False),
            (user(AGENT, node_name=[]), False),
            (user(AGENT, pod_name=["node-a"]), False),
            (user("kubernetes-admin"), True),
        ],
    )
    def test_an_agent_writes_to_its_own_node(
        admission: Callable[[str, dict[str, Any]], str], request_: dict[str, Any], allowed: bool
    ) -> None:
        told = admission("kmodd-agent", {"request": request_, "object": changed("metadata", "name", to="node-a")})
        assert (not told) is allowed, told
        assert allowed or "an agent writes the status of its own node's NodeModules alone" in told

    @pytest.mark.parametrize(
        ("node", "denial"),
        [
            (NODE, ""),
            (changed("metadata", "labels", "modules.kmodd.org/x", to="unavailable"), ""),
            (changed("metadata", "labels", "modules.kmodd.org/x", to=None), ""),
            (changed("metadata", "labels", "modules.kmodd.org/y", to="ready"), ""),
            (changed("metadata", "labels", "zone", to="2"), "labels"),
            (changed("metadata", "labels", "zone", to=None), "labels"),
            (changed("metadata", "labels", "node-role.kubernetes.io/control-plane", to=""), "labels"),
            (changed("metadata", "annotations", to=None), "annotations"),
            (changed("metadata", "annotations", "n", to="2"), "annotations"),
            (changed("spec", "taints", to=[]), "taints"),
            (changed("spec", "unschedulable", to=True), "taints"),
            (changed("status", "conditions", to=[{"type": "Ready", "status": "True"}]), ""),
            (changed("status", "conditions", to=[{"type": "KernelModulesReady", "status": "False"}]), "condition"),
            (changed("status", "capacity", "cpu", to="64"), "capacity"),
            (changed("status", "allocatable", to={}), "capacity"),
            (changed("status", "addresses", to=[]), "addresses"),
        ],
    )
    def test_the_coordinator_changes_its_labels_and_its_condition(
        admission: Callable[[str, dict[str, Any]], str], node: dict[str, Any], denial: str
    ) -> None:
        coordinator = user("system:serviceaccount:kmodd-system:kmodd-coordinator")
        told = admission("kmodd-coordinator", {"request": coordinator, "object": node})
        assert bool(told) is bool(denial), told
        assert denial in told
        assert not admission("kmodd-coordinator", {"request": user("other"), "object": node})


# --- the node --------------------------------------------------------------------------------------------------------

# duktape.h: DUK_COMPILE_EVAL, SAFE, NOSOURCE, STRLEN and NOFILENAME, as duk_peval_string has them.
PEVAL = 1 << 3 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 11
FRAME = """
var rules = [];
var polkit = {Result: {YES: "yes", NO: "no"}, addRule: function (rule) { rules.push(rule); }, log: function () {}};
function ask(id, details, user) {
    var action = {id: id, lookup: function (name) { return details[name]; }};
    var subject = {user: user, isInGroup: function () { return false; }};
    for (var i = 0; i < rules.length; i++) {
        var result = rules[i](action, subject);
        if (result !== undefined && result !== null) { return result; }
    }
    return "undecided";
}
"""


class Rules:
    """polkit's rules in Duktape, which runs them in polkitd."""

    def __init__(self, text: str) -> None:
        self._library = ctypes.CDLL("libduktape.so.207")
        self._library.duk_create_heap.restype = ctypes.c_void_p
        self._library.duk_safe_to_lstring.restype = ctypes.c_char_p
        self._heap = ctypes.c_void_p(self._library.duk_create_heap(None, None, None, None, None))
        self.run(FRAME)
        self.run(text)

    def run(self, text: str) -> str:
        """The value of a script, as text."""
        failed = self._library.duk_eval_raw(self._heap, text.encode(), ctypes.c_size_t(0), ctypes.c_uint(PEVAL))
        answer = self._library.duk_safe_to_lstring(self._heap, ctypes.c_int(-1), None).decode()
        assert not failed, answer
        return str(answer)

    def ask(self, action: str, user: str = "kmodd-agent", **details: str) -> str:
        """`yes`, `no` or `undecided`."""
        return self.run(f"ask({json.dumps(action)}, {json.dumps(details)}, {json.dumps(user)})")

    def close(self) -> None:
        self._library.duk_destroy_heap(self._heap)


@pytest.fixture
def polkit() -> Iterator[Rules]:
    made = Rules((DEPLOY / "node/50-kmodd-agent.rules").read_text())
    yield made
    made.close()


LOAD, UNLOAD = "org.kmodd1.load", "org.kmodd1.unload"


@pytest.mark.parametrize(
    ("expected", "action", "details"),
    [
        ("yes", LOAD, {"module": "nbd", "modules": "nbd"}),
        ("yes", UNLOAD, {"module": "nbd", "modules": "nbd", "loaded-by": "60964"}),
        ("yes", UNLOAD, {"module": "nbd", "modules": "nbd", "loaded-by": "60964", "parameters": "nbds_max=64"}),
        ("no", UNLOAD, {"module": "nbd", "modules": "nbd", "loaded-by": "0"}),
        ("no", UNLOAD, {"module": "nbd", "modules": "nbd", "loaded-by": "60964 unknown"}),
        ("no", UNLOAD, {"module": "nbd", "modules": "nbd"}),
        ("no", UNLOAD, {"module": "loop", "modules": "loop", "loaded-by": "60964"}),
        ("yes", LOAD, {"module": "nbd", "modules": "nbd", "parameters": "max_part=16 nbds_max=64"}),
        ("yes", LOAD, {"module": "wireguard", "modules": "udp_tunnel wireguard"}),
        ("no", LOAD, {"module": "nbd", "modules": "nbd", "parameters": "nbds_max=65"}),
        ("no", LOAD, {"module": "nbd", "modules": "nbd", "parameters": 'nbds_max="64 max_part=16"'}),
        ("no", LOAD, {"module": "wireguard", "modules": "wireguard", "parameters": "max_part=16"}),
        ("no", LOAD, {"module": "nbd", "modules": "loop nbd"}),
        ("no", LOAD, {"module": "loop", "modules": "loop"}),
        ("no", LOAD, {"modules": "nbd wireguard", "parameters": "nbd.max_part=16"}),
        ("no", LOAD, {"modules": ""}),
        ("no", LOAD, {}),
        ("no", LOAD, {"module": "toString", "modules": "toString"}),
        ("no", LOAD, {"module": "__proto__", "modules": "__proto__"}),
        ("no", "org.kmodd1.override-policy", {"module": "nbd", "modules": "nbd"}),
        ("no", "org.kmodd1.configure", {}),
        ("no", "org.kmodd1.import-module", {"module": "nbd"}),
        ("no", "org.kmodd1.set-parameter", {"module": "nbd", "modules": "nbd", "parameters": "max_part=16"}),
        ("no", "org.kmodd1.read-history", {}),
        ("no", "org.kmodd1.inspect", {"module": "nbd", "modules": "nbd"}),
        ("no", "org.freedesktop.systemd1.manage-units", {}),
    ],
)
def test_the_node_gives_the_cluster_what_its_rule_names(
    polkit: Rules, expected: str, action: str, details: dict[str, str]
) -> None:
    assert polkit.ask(action, **details) == expected
    assert polkit.ask(action, user="someone", **details) == "undecided"


def test_the_node_may_let_the_cluster_unload_what_others_loaded(polkit: Rules) -> None:
    polkit.run("kmoddAgentUnloads = null")
    assert polkit.ask(UNLOAD, module="nbd", modules="nbd", **{"loaded-by": "0 unknown"}) == "yes"
    assert polkit.ask(UNLOAD, module="loop", modules="loop", **{"loaded-by": "60964"}) == "no"


def test_the_rule_knows_the_agents_user() -> None:
    rule = (DEPLOY / "node/50-kmodd-agent.rules").read_text()
    number = re.search(r"^u kmodd-agent (\d+) ", (DEPLOY / "node/kmodd-agent.sysusers").read_text(), re.MULTILINE)
    assert number
    assert f'var kmoddAgentUnloads = "{number[1]}";' in rule


def test_the_cluster_sees_the_kernels_log_of_listed_modules_where_the_node_says_so(polkit: Rules) -> None:
    inspect = "org.kmodd1.inspect"
    polkit.run("kmoddAgentMayInspect = true")
    assert polkit.ask(inspect, module="nbd", modules="nbd") == "yes"
    assert polkit.ask(inspect, module="loop", modules="loop") == "no"
    assert polkit.ask(inspect, modules="nbd loop") == "no"
    assert polkit.ask(inspect) == "no"
    assert polkit.ask("org.kmodd1.read-history", module="nbd", modules="nbd") == "no"
    assert polkit.ask(LOAD, module="nbd", modules="nbd", parameters="nbds_max=65") == "no"
