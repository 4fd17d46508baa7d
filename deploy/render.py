#!/usr/bin/env python3
"""Renders the chart with Helm's own engine, and checks the result against Kubernetes' schemas.

    deploy/render.py            check: kubernetes/ is what the chart renders, and every object of every
                                variant is valid for each Kubernetes version; exit status 1 if not
    deploy/render.py --write    write kubernetes/
    deploy/render.py --json     print the objects of the default values, and check nothing

Needs the packages helm-python-sdk, kubernetes-validate and PyYAML from PyPI (target/python in CI); no cluster and no
network.
"""

import json
import sys
from pathlib import Path

import helm_python
import yaml

HERE = Path(__file__).resolve().parent
CHART = HERE / "helm" / "millrace"
PLAIN = HERE / "kubernetes"
NAMESPACE = "millrace"

# The oldest that the chart allows, and the newest that the schemas know.
OLDEST = "1.30"

# What else users set, beside the defaults.
VARIANTS = {
    "defaults": {},
    "everything": {
        "replicas": 1,
        "image": {"repository": "registry.example/millrace", "tag": "0.1.0-rc1", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "cpus": 15,
        "memory": "24Gi",
        "cluster": "eu-1",
        "config": 'store = "null:"\ncores = "all"\n',
        "env": [{"name": "AWS_REGION", "value": "eu-central-1"}],
        "envSecret": "millrace-env",
        "filesSecret": "millrace-files",
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
        "volume": {"size": "1Ti", "storageClass": "local-nvme"},
        "preStopSeconds": 15,
        "drainTimeoutSeconds": 95,
        "seccompProfile": "",
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
        "serviceMonitor": {"enabled": True, "interval": "5s", "labels": {"release": "prometheus"}},
        "podAnnotations": {"a": "1"},
        "nodeSelector": {"pool": "ingest"},
        "tolerations": [{"key": "ingest", "operator": "Exists"}],
    },
    "no wait": {"preStopSeconds": 0},
    # Names that YAML would read as something else than text.
    "names": {
        "image": {"repository": "12", "tag": "30"},
        "envSecret": "true",
        "filesSecret": "123",
        "volume": {"storageClass": "1e3"},
        "seccompProfile": "null",
        "nodeSelector": {"pool": "true"},
        "podAnnotations": {"number": "1"},
        "serviceAccount": {"annotations": {"number": "1"}},
        "service": {"annotations": {"on": "off"}},
    },
    "most": {"replicas": 1000, "cpus": 256, "preStopSeconds": 3600, "drainTimeoutSeconds": 3600},
}

# What the chart's own schema must refuse.
REFUSED = [
    {"cpus": 1.5},
    {"cpus": "500m"},
    {"replicas": 0},
    {"memory": "lots"},
    {"drainTimeoutSeconds": "25s"},
    {"volume": {"size": "10GB"}},
    {"cluster": "eu.1"},
    {"servicemonitor": {"enabled": True}},
    # A NODE_ID has room for three digits.
    {"replicas": 1001},
    {"drainTimeoutSeconds": 3601},
    # What is taken away has no default.
    {"replicas": None},
    {"serviceMonitor": None},
    {"volume": {"size": None}},
    # What Kubernetes refuses.
    {"env": [{"name": "A", "value": 1}]},
    {"env": [{"name": "A", "valu": "1"}]},
    {"nodeSelector": {"ingest": True}},
    {"podAnnotations": {"number": 1}},
    {"serviceAccount": {"annotations": {"number": 1}}},
    {"service": {"annotations": {"number": 1}}},
    {"serviceMonitor": {"labels": {"number": 1}}},
    {"tolerations": [{"keyy": "ingest"}]},
    {"imagePullSecrets": [{"secret": "registry"}]},
]

# Names of releases that Helm takes: as those of objects, and those that cannot be.
NAMES = ["m", "millrace", "my-millrace", "b" * 53, "x-" * 25 + "x"]
NAMES_REFUSED = ["9", "0abc", "a.b"]

# Variables that the chart sets.
OURS = ["MILLRACE_CONFIG", "MILLRACE_DRAIN_TIMEOUT", "MILLRACE_NODE_ID", "POD_NAME", "POD_NAMESPACE"]


def render(values, namespace=NAMESPACE, name="millrace"):
    """The rendered files by name, those without an object left out."""
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name=name, namespace=namespace)
    return {Path(name).name: text for name, text in sorted(files.items()) if text.strip() and name.endswith(".yaml")}


def objects(files):
    return [found for text in files.values() for found in yaml.safe_load_all(text) if found]


def plain():
    """The files of kubernetes/: the chart with its defaults, and the monitor, which needs its CRD."""
    head = "# Rendered from deploy/helm/millrace by deploy/render.py --write: kubectl apply -n millrace -f FILE\n"
    files = render({"serviceMonitor": {"enabled": True}})
    monitor = files.pop("servicemonitor.yaml")
    whole = "".join("---\n" + text.strip() + "\n" for text in files.values())
    # Nobody has installed this with Helm.
    texts = {"millrace.yaml": whole, "servicemonitor.yaml": monitor.strip() + "\n"}
    return {name: head + text.replace("managed-by: Helm", "managed-by: kubectl") for name, text in texts.items()}


def is_rendered(*args):
    try:
        render(*args)
    except helm_python.HelmError:
        return False
    return True


def names(refusals):
    """What is wrong with names of releases, and with what YAML would read as something else than text."""
    (pod,) = (one["spec"] for one in objects(render(VARIANTS["names"])) if one["kind"] == "StatefulSet")
    given = pod["template"]["spec"]["containers"][0]["image"], pod["volumeClaimTemplates"][0]["spec"]["storageClassName"]
    if given != ("12:30", "1e3"):
        yield f"names: {given}"
    for name in NAMES:
        for one in objects(render({}, "n", name)):
            # The controller's label of a pod is the StatefulSet's name and a hash.
            if len(one["metadata"]["name"]) > (52 if one["kind"] == "StatefulSet" else 63):
                yield f"release {name}: a {one['kind']} has a name that is too long"
            yield from (f"release {name}: {refusal}" for refusal in refusals(one))
    for name in NAMES_REFUSED:
        if is_rendered({}, NAMESPACE, name):
            yield f"the release {name} is rendered, and Kubernetes would refuse its Services"
    for name in OURS:
        if is_rendered({"env": [{"name": name, "value": "90s"}]}):
            yield f"{name} is set twice"
    # The longest NODE_ID that the server takes, and one character more.
    room = 64 - len(".millrace-999")
    for values, namespace in ({}, "n" * (room + 1)), ({"cluster": "c"}, "n" * (room - 1)):
        if is_rendered(values, namespace):
            yield f"a NODE_ID of 65 characters is rendered: {values}, {namespace}"
    render({}, "n" * room)


def check():
    import kubernetes_validate

    versions = [OLDEST, kubernetes_validate.latest_version()]

    def refusals(one):
        for version in versions:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{one['kind']} for Kubernetes {version}: {error}"

    problems = []
    for name, text in plain().items():
        path = PLAIN / name
        if not path.exists() or path.read_text() != text:
            problems.append(f"{path}: differs from what the chart renders; deploy/render.py --write")
    for variant, values in VARIANTS.items():
        found = objects(render(values))
        kinds = [one["kind"] for one in found]
        assert "StatefulSet" in kinds, kinds
        for one in found:
            if one["apiVersion"].startswith("monitoring.coreos.com/"):
                continue
            problems.extend(f"{variant}: {refusal}" for refusal in refusals(one))
        print(f"{variant}: {', '.join(kinds)}")
    problems.extend(names(refusals))
    # The schemas refuse what is wrong: a field that does not exist, and one of the wrong type.
    for wrong in {"enableServiceLink": False}, {"terminationGracePeriodSeconds": "40s"}:
        (one,) = (one for one in objects(render({})) if one["kind"] == "StatefulSet")
        one["spec"]["template"]["spec"].update(wrong)
        if len(list(refusals(one))) != len(versions):
            problems.append(f"the schemas take {wrong}")
    for values in REFUSED:
        with helm_python.Chart.load(str(CHART)) as chart:
            try:
                chart.validate_schema(values)
            except helm_python.HelmError:
                continue
        problems.append(f"values.schema.json takes {values}")
    lint = helm_python.lint(str(CHART))
    problems.extend(f"lint: {error}" for error in lint["errors"])
    print(f"valid for Kubernetes {' and '.join(versions)}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def main():
    match sys.argv[1:]:
        case []:
            return check()
        case ["--json"]:
            json.dump(objects(render({"serviceMonitor": {"enabled": True}})), sys.stdout)
            return 0
        case ["--write"]:
            PLAIN.mkdir(exist_ok=True)
            for name, text in plain().items():
                (PLAIN / name).write_text(text)
            return 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
