"""Print THIRD_PARTY_LICENSES.md: what tether needs to run, and what that needs, with licences.

    make dist      # or: python tools/third_party_licenses.py > THIRD_PARTY_LICENSES.md

Licences are those that the installed packages name themselves.
"""

import tomllib
from importlib.metadata import PackageMetadata, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HEAD = (
    "# Third-party licences\n\n"
    "tether is licensed under Apache-2.0 ([LICENSE](LICENSE)) and contains no code of others. It "
    "needs the packages below to run; pip installs them, and each stays under its own licence. "
    "HTML reports hold a copy of plotly.js (MIT), which plotly brings. On Linux, PyPI's build of "
    "torch also brings NVIDIA's CUDA libraries, under NVIDIA's licences, and triton (MIT); "
    "PyTorch's CPU build does not.\n\n"
    "`make dist` writes this page anew, from what the installed packages say of themselves."
)
USUAL_NAMES = {
    "apache": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
}


def main() -> None:
    """Print the page."""
    direct = {canonicalize_name(name) for name in dependencies()}
    rest = closure(direct) - direct
    print(HEAD)
    for title, names in (("What tether imports", direct), ("What those need", rest)):
        print(f"\n## {title}\n\n| package | licence |\n|---|---|")
        for name in sorted(names):
            metadata = distribution(name).metadata
            link = f"[{metadata['Name']}](https://pypi.org/project/{name}/)"
            print(f"| {link} | {licence(metadata)} |")


def dependencies() -> list[str]:
    """The names of tether's dependencies, without those of its extras."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return [Requirement(line).name for line in tomllib.loads(text)["project"]["dependencies"]]


def closure(names: set[str]) -> set[str]:
    """These packages and all that they need here, without extras."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found.add(name)
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                left.append(needed.name)
    return found


def licence(metadata: PackageMetadata) -> str:
    """The licence that a package names: an SPDX expression, a short name, or a classifier."""
    values = metadata.json
    classifiers = [one for one in values.get("classifier", []) if one.startswith("License ::")]
    named = str(values.get("license", "")).strip()
    told = values.get("license_expression") or (named if named and len(named) <= 40 else "")
    told = told or ", ".join(one.rsplit(" :: ", 1)[-1] for one in classifiers)
    if not told:
        raise SystemExit(f"{metadata['Name']} names no licence; look it up and say it here")
    return USUAL_NAMES.get(str(told).lower(), str(told))


if __name__ == "__main__":
    main()
