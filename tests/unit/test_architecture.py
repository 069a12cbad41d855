"""Who may import whom (docs/architecture.md): left never imports right, leaves import nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "softgrpo"
FILES = sorted(PACKAGE.rglob("*.py"))

# package -> the packages it may import, itself aside. A module beside them counts as one.
_METHOD = {"thinking", "modeling", "replay", "rollout"}
_LEAVES = {
    "rewards",
    "sandbox",
    "tasks",
    "reports",
    "lab",
    "planning",
    "models",
    "files",
    "checkpoints",
    "values",
    "lazy",
    "together",
}
MAY_IMPORT = {
    "thinking": {"values", "lazy"},
    "modeling": set(),
    "replay": {"thinking", "modeling"},
    "rollout": {"thinking", "modeling", "replay", "values", "together"},
    "training": _METHOD | _LEAVES,
    "evaluation": _METHOD | _LEAVES,
    "rewards": {"sandbox", "values"},
    "sandbox": set(),
    "tasks": {"rewards", "values"},
    "reports": set(),
    "lab": {"rewards", "tasks"},
    "planning": set(),
    "models": {"lab", "checkpoints", "files"},
    "files": set(),
    "values": set(),
    "lazy": set(),
    "together": set(),
    "checkpoints": {"files"},
    "runs": _METHOD | _LEAVES | {"training", "evaluation"},
    "cli": _METHOD | _LEAVES | {"training", "evaluation", "runs"},
}  # fmt: skip
ONLY_IN = {"trl": {"training", "runs"}, "matplotlib": {"reports"}, "vllm": {"rollout"}}


def _package(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Absolute dotted names a file imports, wherever in it, under TYPE_CHECKING or not."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_package_may(path):
    own, names = _package(path), _imports(path)
    if own == "__init__":
        pytest.skip("the package's own names, imported lazily")
    used = {name.split(".")[1] for name in names if name.startswith("softgrpo.")} - {own}
    assert used & MAY_IMPORT.keys() <= MAY_IMPORT[own]
    packages = {name.split(".")[0] for name in names}
    for package, users in ONLY_IN.items():
        assert package not in packages or own in users, f"{package} in {own}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_vllm_is_imported_where_it_is_used_alone(path):
    packages = {name.split(".")[0] for name in _imports(path)}
    in_its_files = str(path.relative_to(PACKAGE)).startswith("rollout/vllm_")
    assert "vllm" not in packages or in_its_files


def test_every_package_is_known():
    assert {_package(path) for path in FILES} - {"__init__", "__main__"} <= MAY_IMPORT.keys()
