"""Building and installing the native operators, as a user's pip does it."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.slow
CHECK = """
import torch
from projects_maskrcnn import ops
from projects_maskrcnn.ops import native
print("built for", sorted(native.DEVICES))
boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]])
print(ops.nms(boxes, torch.tensor([0.3, 0.6, 0.9]), 0.5).tolist())
"""


@pytest.fixture
def wheel(root, tmp_path):
    """Builds a wheel of the project in an environment with these variables; returns pip's run and the wheel."""
    source = tmp_path / "source"
    shutil.copytree(
        root / "projects_maskrcnn", source / "projects_maskrcnn", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(root / name, source)

    def build(**environment):
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path / "wheels", source]
        # without a CUDA toolkit, which takes minutes
        path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not shutil.which("nvcc", path=p))
        variables = {**os.environ, "CUDA_HOME": str(tmp_path), "PATH": path, **environment}
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        return done, next(iter((tmp_path / "wheels").glob("*.whl")), None)

    return build


def run_installed(wheel, folder):
    """What the wheel's package says of itself, away from the sources."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", CHECK], env=environment, cwd=folder, capture_output=True, text=True)


def test_a_wheel_serves_every_python_and_torch(wheel, tmp_path):
    done, path = wheel()
    assert done.returncode == 0, done.stderr
    assert "-py3-none-" in path.name and not path.name.endswith("any.whl")
    ran = run_installed(path, tmp_path / "installed")
    assert ran.returncode == 0, ran.stderr
    assert "built for ['cpu', 'meta']" in ran.stdout and "[2, 1]" in ran.stdout
    # nothing of Python, nor of what changes between releases of torch
    library = tmp_path / "installed/projects_maskrcnn/ops/libmaskrcnn.so"
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch_" in symbols or "torch_" in symbols
    unstable = [line for line in symbols.splitlines() if "_ZN2at" in line or "_ZN3c10" in line or " Py" in line]
    assert not unstable


def test_without_the_operators(wheel, tmp_path):
    done, path = wheel(MASKRCNN_BUILD_OPS="0")
    assert done.returncode == 0, done.stderr
    assert path.name.endswith("-py3-none-any.whl")
    ran = run_installed(path, tmp_path / "installed")
    assert "built for []" in ran.stdout and "[2, 1]" in ran.stdout
    assert ran.stderr.count("The native operators are not built") == 1


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"CXX": "no-such-compiler"}, "needs 'no-such-compiler', which is not installed: install a C++ compiler"),
        ({"CXX": "false"}, "native operators failed. This command said:"),
    ],
)
def test_a_failed_build_says_what_is_missing(wheel, environment, complaint):
    done, path = wheel(**environment)
    assert done.returncode != 0 and path is None
    assert complaint in done.stderr and "MASKRCNN_BUILD_OPS=0" in done.stderr
