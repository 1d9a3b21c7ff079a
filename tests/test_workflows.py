"""The workflows for GitHub take only actions pinned by digest, and hold no secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[1] / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


def test_there_are_workflows_for_auditing_ci_and_publishing() -> None:
    assert [path.name for path in FILES] == ["audit.yml", "ci.yml", "publish.yml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_pinned_by_digest_and_names_its_release(path: Path) -> None:
    uses = re.findall(r"uses: (.*)", path.read_text("utf-8"))
    assert uses
    for one in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_gets_no_more_rights_than_it_needs(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    granted = {name: job.get("permissions", {}) for name, job in workflow["jobs"].items()}
    others = [rights for name, rights in granted.items() if name not in ("publish", "attest")]
    assert all(rights in ({}, {"contents": "read"}) for rights in others)
    assert "secrets." not in path.read_text("utf-8")


def test_the_jobs_that_sign_and_publish_run_no_code_of_ours() -> None:
    jobs = read(FOLDER / "publish.yml")["jobs"]
    for name in ("attest", "publish"):
        assert not any("run" in step or "checkout" in step.get("uses", "") for step in jobs[name]["steps"])
    job = jobs["publish"]
    assert job["permissions"] == {"id-token": "write"}
    assert job["environment"]["name"] == "pypi"
    assert job["steps"][-1]["with"] == {"attestations": True}  # and so no password


def test_a_release_is_audited_and_signed_with_its_bill_of_materials_before_it_is_published() -> None:
    jobs = read(FOLDER / "publish.yml")["jobs"]
    assert any(step.get("run") == "make audit licences sbom" for step in jobs["build"]["steps"])
    assert jobs["attest"]["permissions"] == {"id-token": "write", "attestations": "write"}
    inputs = [step["with"] for step in jobs["attest"]["steps"] if "actions/attest@" in step["uses"]]
    provenance, bill = inputs
    assert provenance == {"subject-path": "dist/*"}
    assert bill == {"subject-path": "dist/*", "sbom-path": "sbom/thumbnet.cdx.json"}
    assert "attest" in jobs["publish"]["needs"]
