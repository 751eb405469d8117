"""Which framework the seam selects, each case in an interpreter of its own."""

import os
import subprocess
import sys

import pytest

REAL = "import importlib.util; print(importlib.util.find_spec('detectron2') is not None)"


def run_seam(root, choice=None, path=None, code="import projects_maskrcnn.framework as f; print(f.FRAMEWORK)"):
    """Run `code` with MASKRCNN_FRAMEWORK=`choice` and the folder `path` first on the import path."""
    environment = {k: v for k, v in os.environ.items() if k != "MASKRCNN_FRAMEWORK"}
    if choice is not None:
        environment["MASKRCNN_FRAMEWORK"] = choice
    environment["PYTHONPATH"] = os.pathsep.join([str(p) for p in (path, root) if p])
    return subprocess.run(
        [sys.executable, "-c", code], cwd=path or root, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def detectron2_is_installed(root):
    return run_seam(root, code=REAL).stdout.strip() == "True"


@pytest.fixture
def without_detectron2(detectron2_is_installed):
    if detectron2_is_installed:
        pytest.skip("Detectron2 is installed here")


@pytest.fixture
def fake_detectron2(tmp_path):
    """A folder for the import path; the function given writes a `detectron2` package with that __init__.py."""

    def write(init: str | None):
        package = tmp_path / "detectron2"
        package.mkdir()
        if init is not None:
            (package / "__init__.py").write_text(init)
        return tmp_path

    return write


@pytest.mark.parametrize("choice", [None, "auto", "embedded"])
def test_absent_detectron2_means_embedded(root, choice, without_detectron2):
    assert run_seam(root, choice).stdout.strip() == "embedded"


def test_forced_and_absent_is_an_error_with_a_remedy(root, without_detectron2):
    result = run_seam(root, "detectron2")
    assert result.returncode != 0
    assert "Detectron2 is not installed" in result.stderr and "unset the variable" in result.stderr


def test_a_mere_folder_is_not_an_installation(root, fake_detectron2, without_detectron2):
    folder = fake_detectron2(None)
    assert run_seam(root, "auto", folder).stdout.strip() == "embedded"
    assert "not installed" in run_seam(root, "detectron2", folder).stderr


@pytest.mark.parametrize("choice", ["auto", "detectron2"])
def test_installed_but_broken_says_what_is_broken(root, fake_detectron2, choice):
    result = run_seam(root, choice, fake_detectron2("raise OSError('libtorch_cuda.so: cannot open')"))
    assert result.returncode != 0
    assert "Detectron2 is installed but broken: OSError: libtorch_cuda.so: cannot open" in result.stderr
    assert "MASKRCNN_FRAMEWORK=embedded" in result.stderr


def test_incomplete_detectron2_is_broken_never_half_used(root, fake_detectron2):
    result = run_seam(root, "auto", fake_detectron2(""))
    assert result.returncode != 0 and "installed but broken: ModuleNotFoundError" in result.stderr


def test_forced_embedded_leaves_an_installed_detectron2_alone(root, fake_detectron2):
    folder = fake_detectron2("raise RuntimeError('imported')")
    code = "import sys, projects_maskrcnn.framework as f; print(f.FRAMEWORK, 'detectron2' in sys.modules)"
    assert run_seam(root, "embedded", folder, code).stdout.split() == ["embedded", "False"]


def test_unknown_choice_lists_the_choices(root):
    result = run_seam(root, "mmdet")
    assert "MASKRCNN_FRAMEWORK='mmdet': expected one of auto, detectron2, embedded" in result.stderr
