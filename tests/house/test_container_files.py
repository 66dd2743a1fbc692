"""The image, the Compose files and the Kubernetes manifests agree with each other and with the program."""

import asyncio
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from molecule_connect.config.json_schema import list_schema
from molecule_connect_sandbox.testing import Sandbox

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
(USER,) = set(re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE))
(STATE,) = set(re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE))
MANIFESTS = ("kubernetes.yaml", "kubernetes-machines.yaml")


def _manifest(name: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy" / name).read_text())
    return {document["kind"]: document for document in documents}


def test_image_installs_existing_plugins() -> None:
    (line,) = re.findall(r'^ARG PLUGINS="(.*)"$', DOCKERFILE, re.MULTILINE)
    assert all((ROOT / "plugins" / name / "pyproject.toml").exists() for name in line.split())


def test_image_keeps_its_state_in_the_volume() -> None:
    assert f"MOLECULE_STATE_DIR={STATE}" in DOCKERFILE
    assert DOCKERFILE.rindex("USER ") < DOCKERFILE.rindex("ENTRYPOINT")


def _services(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / name).read_text())["services"]
    return {key: service for key, service in found.items() if key != "database"}


@pytest.mark.parametrize("name", ["compose.yaml", "compose-machines.yaml"])
def test_compose_services_share_the_image(name: str) -> None:
    services = _services(name)
    assert {service["image"] for service in services.values()} == {"molecule-connect"}
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in services.values())
    connectors = [service for key, service in services.items() if key.startswith("connector")]
    assert connectors
    assert all(any(volume.endswith(f":{STATE}") for volume in service["volumes"]) for service in connectors)


def test_compose_connectors_have_journals_of_their_own() -> None:
    services = _services("compose-machines.yaml")
    connectors = [service["volumes"] for key, service in services.items() if key.startswith("connector")]
    assert len({volume for volumes in connectors for volume in volumes if volume.endswith(f":{STATE}")}) == 2


async def test_compose_list_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load((ROOT / "deploy" / "compose-machines.yaml").read_text())
    script = document["configs"]["create_list"]["content"]
    async with Sandbox.over_loopback(admin_token="trial") as sandbox:
        script = script.replace("http://127.0.0.1:8080", sandbox.url)
        await asyncio.to_thread(exec, script, {})
    table = tomllib.loads(capsys.readouterr().out)
    jsonschema.validate(table, list_schema())
    assert len(table["workspace"]) == 4


def _is_unprivileged(pod: dict[str, Any]) -> bool:
    (container,) = pod["containers"]
    return (
        pod["securityContext"]["runAsNonRoot"]
        and pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == int(USER)
        and container["securityContext"]["readOnlyRootFilesystem"]
        and container["securityContext"]["allowPrivilegeEscalation"] is False
        and container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    )


@pytest.mark.parametrize(("name", "replicas"), [(MANIFESTS[0], 1), (MANIFESTS[1], 3)])
def test_manifest_runs_replicas_without_rights(name: str, replicas: int) -> None:
    spec = _manifest(name)["StatefulSet"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["replicas"] == replicas
    assert _is_unprivileged(pod)
    assert pod["securityContext"]["fsGroup"] == int(USER)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {STATE, "/tmp"} <= mounts
    assert pod["terminationGracePeriodSeconds"] > 20


def test_replicas_and_job_share_a_database() -> None:
    manifest = _manifest("kubernetes-machines.yaml")
    job = manifest["Job"]["spec"]["template"]["spec"]
    assert _is_unprivileged(job)
    serving = manifest["StatefulSet"]["spec"]["template"]
    assert job["containers"][0]["env"] == serving["spec"]["containers"][0]["env"]
    assert job["containers"][0]["env"][0]["name"] == "MOLECULE_JOURNAL_URL"
    # The job isn't one of the pods that may be disrupted.
    protected = manifest["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert protected == serving["metadata"]["labels"] != manifest["Job"]["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_has_a_valid_list(name: str) -> None:
    jsonschema.validate(tomllib.loads(_manifest(name)["ConfigMap"]["data"]["fleet.toml"]), list_schema())
