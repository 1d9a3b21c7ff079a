"""Writes the software bill of materials of a release, in CycloneDX 1.6: make sbom

It names the packages that `thumbnet[all]` was tested with. Versions come from locks/train.txt, licences and
dependencies from the metadata of the installed packages. The same commit gives the same file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from licences import ALLOWED, installed_licences
from pins import LOCKS, Pin, normalised, read_pins

Json = dict[str, Any]
NO_SPDX = {"BSD", "Python Software Foundation License"}


def bill() -> Json:
    """The bill of materials as CycloneDX's JSON.

    Raises:
        PackageNotFoundError: a package of the lock is not installed.
    """
    licences = installed_licences()
    pins = {name: pin for name, pin in read_pins(LOCKS / "train.txt").items() if name in licences}
    root = component(Pin("thumbnet", importlib.metadata.version("thumbnet")), "MIT")
    graph = [depends(root["bom-ref"], needs("thumbnet", "all"), pins)]
    graph += [depends(reference(pin), needs(name), pins) for name, pin in pins.items()]
    content: Json = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**root, "type": "application"}},
        "components": [component(pin, licences[name]) for name, pin in sorted(pins.items())],
        "dependencies": sorted(graph, key=lambda one: str(one["ref"])),
    }
    name = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return {**content, "serialNumber": name.urn}


def reference(pin: Pin) -> str:
    """The package URL of a pin."""
    return f"pkg:pypi/{pin.name}@{pin.version}"


def component(pin: Pin, licence: str) -> Json:
    """One package."""
    single = {"name": licence} if licence in NO_SPDX else {"id": licence}
    known = licence in ALLOWED and " WITH " not in licence
    choice: Json = {"license": single} if known else {"expression": licence}
    address = reference(pin)
    return {
        **{"type": "library", "bom-ref": address, "name": pin.name, "version": pin.version, "purl": address},
        "licenses": [choice],
    }


def needs(package: str, extra: str = "") -> set[str]:
    """The names of what an installed package requires on this platform, and of what its extras do."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    for text in importlib.metadata.requires(package) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            name = normalised(requirement.name)
            if name == package:  # thumbnet[all] is made of thumbnet's other extras
                found |= set().union(*(needs(package, one) for one in requirement.extras))
            else:
                found.add(name)
    return found


def depends(address: str, names: set[str], pins: dict[str, Pin]) -> Json:
    """One entry of the graph."""
    return {"ref": address, "dependsOn": sorted(reference(pins[name]) for name in names if name in pins)}


def validated(path: Path) -> int:
    """1 with a message if the file breaks the schema of CycloneDX; needs the environment build/tools."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text("utf-8"))
    if problem is not None:
        print(f"{path}: {problem}", file=sys.stderr)
        return 1
    print(f"{path}: valid CycloneDX 1.6")
    return 0


def main() -> int:
    """Write a bill, or check one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true", help="check the file against CycloneDX's schema")
    options = parser.parse_args()
    if options.check:
        return validated(options.file)
    content = bill()
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(f"{options.file}: {len(content['components'])} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
