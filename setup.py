"""Packaging, and the build of the native operators.

They stand on LibTorch's stable ABI: a library built with the headers of one torch serves every torch from 2.10 on, and
every Python. So any torch will do for the build: the one that is installed where we install to, though pip's build
isolation hides it from imports; where there is none, the build asks for one.

`MASKRCNN_BUILD_OPS=0` leaves the operators out. `MASKRCNN_CUDA_ARCHS` (such as ``90`` or ``80;90``) names the GPUs to
compile for where a CUDA toolkit is found; when empty, the CUDA half is left out.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = Path("projects_maskrcnn/csrc")
BUILD_OPS = os.environ.get("MASKRCNN_BUILD_OPS", "1") != "0"
CUDA_ARCHS = os.environ.get("MASKRCNN_CUDA_ARCHS")
BUILD_TORCH = "torch==2.13.0"
TORCH_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10
X86 = platform.machine().lower() in ("x86_64", "amd64")
ISA_FLAGS = {"baseline": []} | (
    {
        "avx2": ["-march=x86-64-v3"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    }
    if X86
    else {}
)


def torch_folder() -> Path | None:
    """Where a torch with a stable ABI that we can use lies, or None."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [Path(sysconfig.get_path(kind)) / "torch" for kind in ("purelib", "platlib")]
    for folder in folders:
        if (folder / "version.py").is_file():
            found = re.search(r"__version__ = '(\d+)\.(\d+)", (folder / "version.py").read_text())
            if found and (int(found[1]), int(found[2])) >= (2, 10):
                return folder
    return None


def cuda_compiler() -> str | None:
    """Path of nvcc, or None where there is none or no GPU to compile for."""
    if CUDA_ARCHS == "":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(str(Path(home, "bin/nvcc"))) or shutil.which("nvcc")


class BuildOps(build_ext):
    """Compiles the sources of `csrc/` into one library that knows nothing of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without Python's version in the name: the library serves them all."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile in parallel, then link.

        Raises:
            SystemExit: a tool or torch is missing, or the compiler refused; with what to do.
        """
        torch, nvcc = torch_folder(), cuda_compiler()
        if torch is None:
            fail("needs the headers of torch >= 2.10, and found none: install torch first")
        build = Path(self.build_temp)
        build.mkdir(parents=True, exist_ok=True)
        cxx = os.environ.get("CXX", "c++")
        commands = cpu_commands(cxx, torch, build) + (cuda_commands(nvcc, torch, build) if nvcc else [])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, commands))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        objects = [command[-1] for command in commands]
        # nvcc knows where its runtime lies. Linked statically, it lets the library load where there is no GPU.
        linker = [nvcc, "-shared", "-cudart=static"] if nvcc else [cxx, "-shared"]
        run([*linker, *objects, f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(library)])


def cpu_commands(cxx: str, torch: Path, build: Path) -> list[list[str]]:
    """One compiler call for each source, and for each instruction set of the vector kernels. The object comes last."""
    common = [cxx, "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", f"-I{torch / 'include'}", TORCH_ABI]
    common += ["-DMASKRCNN_X86"] if X86 else []
    kernels = CSRC / "cpu/kernels.cpp"
    commands = [
        # The geometry of RoIs must round alike on every processor: no fused multiply-add.
        [*common, "-ffp-contract=off", "-c", str(source), "-o", str(build / f"{source.stem}.o")]
        for source in [CSRC / "library.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]
        if source != kernels
    ]
    return commands + [
        [*common, "-fno-math-errno", "-Wno-psabi", *flags, f"-DMASKRCNN_ISA={isa}"]
        + ["-c", str(kernels), "-o", str(build / f"kernels_{isa}.o")]
        for isa, flags in ISA_FLAGS.items()
    ]


def cuda_commands(nvcc: str, torch: Path, build: Path) -> list[list[str]]:
    """One call of nvcc for each source. The object comes last."""
    archs = CUDA_ARCHS.split(";") if CUDA_ARCHS else default_archs(nvcc)
    gencode = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    gencode += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]  # what newer GPUs compile from
    common = [nvcc, "-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", *gencode]
    common += [f"-I{torch / 'include'}", TORCH_ABI, "--threads=0"]
    return [
        [*common, "-c", str(source), "-o", str(build / f"{source.stem}_cuda.o")]
        for source in sorted((CSRC / "cuda").glob("*.cu"))
    ]


def default_archs(nvcc: str) -> list[str]:
    """Those of our GPUs that this CUDA toolkit knows."""
    known = run([nvcc, "--list-gpu-arch"]).split()
    return [arch for arch in ("80", "90", "100") if f"compute_{arch}" in known]


def run(command: list[str]) -> str:
    """Run a compiler, and return what it prints. Its complaint ends the build."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        fail(f"needs {command[0]!r}, which is not installed: install a C++ compiler such as g++, or set CXX to yours")
    if done.returncode:
        fail(f"failed. This command said:\n{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def fail(reason: str) -> NoReturn:
    """End the installation."""
    raise SystemExit(
        f"The build of projects_maskrcnn's native operators {reason}\n"
        "(MASKRCNN_BUILD_OPS=0 installs without them; the slower PyTorch reference then serves.)"
    )


class Wheel(bdist_wheel):
    """Tags the wheel for this platform and for any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Of the library's own needs: see the module's docstring."""
        return ("py3", "none", super().get_tag()[2])


setup(
    name="projects_maskrcnn",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "projects_maskrcnn/__init__.py").read_text())[1],
    description="Mask R-CNN as a Detectron2 project, with an embedded framework where Detectron2 is absent",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["projects_maskrcnn", "projects_maskrcnn.*"]),
    ext_modules=[Extension("projects_maskrcnn.ops.libmaskrcnn", sources=[])] if BUILD_OPS else [],
    cmdclass={"build_ext": BuildOps} | ({"bdist_wheel": Wheel} if BUILD_OPS else {}),
    setup_requires=[BUILD_TORCH] if BUILD_OPS and torch_folder() is None else [],
    install_requires=[
        "torch>=2.10",
        "fvcore",
        "iopath",
        "pycocotools>=2.0.8",
        "opencv-python-headless",
        "numpy",
        "pillow",
        "safetensors",
        "shapely>=2",
        "matplotlib",
        "tabulate",
        "tensorboard",
        "termcolor",
        "tqdm",
    ],
    extras_require={
        "test": ["pytest", "pytest-xdist", "ruff==0.17.5", "clang-format==23.1.5", "setuptools>=77"],
        "cityscapes": ["cityscapesscripts"],
    },
)
