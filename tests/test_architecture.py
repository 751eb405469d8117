"""The house rules of CONTRIBUTING.md, held by reading the imports."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "projects_maskrcnn"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 500


def imported_modules(path: Path) -> set[str]:
    """Absolute dotted names of all that the module at `path` imports, wherever in the file."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def room(path: Path) -> str:
    """The room a module is in: a folder of the package, or a top-level module's own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = {name for name in imported_modules(path) if within(name, "projects_maskrcnn")}
    others = imported_modules(path) - own
    assert not any(within(name, "torchvision") for name in others)
    if room(path) != "framework":
        assert not any(within(name, "detectron2") for name in others)
    match room(path):
        case "ops":
            allowed = ("projects_maskrcnn.ops",)
            assert {name.split(".")[0] for name in others} <= {"torch", "numpy", *sys.stdlib_module_names}
        case "weights":
            allowed = ("projects_maskrcnn.weights",)
        case "coco_check":
            allowed = ()
            assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names
        case "embedded":
            shared = ("ops", "weights", "coco_check")
            allowed = ("projects_maskrcnn.embedded", *(f"projects_maskrcnn.{name}" for name in shared))
        case "framework":
            allowed = ("projects_maskrcnn.embedded",)
        case _:
            assert not any(within(name, "projects_maskrcnn.embedded") for name in own)
            return
    assert all(any(within(name, package) for package in allowed) for name in own)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_one_concept_a_file(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_train_net_stays_outside_the_frameworks():
    names = imported_modules(ROOT / "train_net.py")
    assert not any(within(n, "detectron2") or within(n, "projects_maskrcnn.embedded") for n in names)


def test_both_branches_of_the_seam_list_the_same_names_from_the_same_submodules():
    tree = ast.parse((PACKAGE / "framework.py").read_text())
    (choice,) = [node for node in tree.body if isinstance(node, ast.If)]

    def contract(statements, prefix):
        imports = [n for s in statements for n in ast.walk(s) if isinstance(n, ast.ImportFrom)]
        assert imports and all(within(n.module, prefix) for n in imports)
        return [(n.module.removeprefix(prefix), alias.name, alias.asname) for n in imports for alias in n.names]

    detectron2, embedded = contract(choice.body, "detectron2"), contract(choice.orelse, "embedded")
    assert detectron2 == embedded
    assert len(detectron2) == len(set(detectron2)) > 40


def test_the_seam_lists_nothing_that_nobody_uses():
    tree = ast.parse((PACKAGE / "framework.py").read_text())
    (choice,) = [node for node in tree.body if isinstance(node, ast.If)]
    listed = {
        alias.name
        for s in choice.orelse
        for node in ast.walk(s)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    users = [p for p in MODULES if room(p) not in ("framework", "embedded", "ops", "weights", "coco_check")]
    users += [ROOT / "train_net.py", *(ROOT / "tests").rglob("*.py")]
    used = {
        name.removeprefix("projects_maskrcnn.framework.")
        for path in users
        for name in imported_modules(path)
        if within(name, "projects_maskrcnn.framework")
    }
    assert listed - used == set()
