"""The image, the Compose file and the Kubernetes manifest agree with each other and with the program."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
(USER,) = set(re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE))
(STATE,) = set(re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE))


def _manifest() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_image_installs_existing_plugins() -> None:
    (line,) = re.findall(r'^ARG PLUGINS="(.*)"$', DOCKERFILE, re.MULTILINE)
    assert all((ROOT / "plugins" / name / "pyproject.toml").exists() for name in line.split())


def test_image_keeps_its_state_in_the_volume() -> None:
    assert f"MOLECULE_STATE_DIR={STATE}" in DOCKERFILE
    assert DOCKERFILE.rindex("USER ") < DOCKERFILE.rindex("ENTRYPOINT")


def test_compose_services_share_the_image() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert {service["image"] for service in services.values()} == {"molecule-connect"}
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in services.values())
    assert any(volume.endswith(f":{STATE}") for volume in services["connector"]["volumes"])


def test_manifest_runs_one_replica_without_rights() -> None:
    spec = _manifest()["StatefulSet"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["replicas"] == 1
    assert pod["securityContext"]["runAsNonRoot"]
    assert {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(USER)}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {STATE, "/tmp"} <= mounts
    assert pod["terminationGracePeriodSeconds"] > 20


def test_manifest_has_a_valid_list() -> None:
    import jsonschema

    from molecule_connect.config.json_schema import list_schema

    jsonschema.validate(tomllib.loads(_manifest()["ConfigMap"]["data"]["fleet.toml"]), list_schema())
