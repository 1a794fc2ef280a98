"""The house: imports point one way, the lowest layer knows nothing above it, files stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "levsketch"
# A module may import from its own layer and from layers to the right of it.
LAYERS = [
    ("integrations", "cli", "plotting"),
    ("estimators",),
    ("algorithms",),
    ("streaming",),
    ("functions", "sketches", "linalg"),
    ("backends",),
    ("_kernels",),
]
OPEN_TO_ALL = {"_checks", "_typing"}  # importable by everyone, importing nothing of ours
LEAVES = {"datasets", "_show_versions", "__init__"}  # may import anything; imported by no layer
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def layer_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_layers(path):
    """Return the levsketch layers that a file imports, with the line of each import."""
    package = ["levsketch", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "levsketch" and len(parts) > 1:
                yield parts[1], node.lineno


def violations(path):
    mine = layer_of(path)
    for layer, line in imported_layers(path):
        if mine in LEAVES or layer == mine:
            continue
        if mine in OPEN_TO_ALL:
            yield f"{path.name}:{line} imports {layer}, but must import nothing of ours"
        elif layer not in OPEN_TO_ALL and RANK.get(layer, -1) < RANK[mine]:
            # "levsketch.LeverageKeySelector" counts as the top: only the topmost may use it
            if mine in LAYERS[0] and layer not in RANK:
                continue
            yield f"{path.name}:{line} imports {layer}, which is above {mine}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert list(violations(path)) == []


def test_every_module_has_a_room():
    rooms = set(RANK) | OPEN_TO_ALL | LEAVES
    assert {layer_of(path) for path in FILES} <= rooms


def test_an_upward_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "backends").mkdir()
    bad = tmp_path / "backends" / "bad.py"
    bad.write_text("from levsketch.streaming import keys\nfrom ..linalg import whiten\n")
    assert len(list(violations(bad))) == 2


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 400
