"""The CUDA sources as nvcc compiles them for the build."""

import re
import subprocess

import pytest


@pytest.mark.slow
def test_kernels_spill_no_registers(build_script, root, tmp_path, monkeypatch):
    nvcc = build_script.cuda_compiler()
    if nvcc is None:
        pytest.skip("no CUDA toolkit")
    monkeypatch.chdir(root)
    monkeypatch.setenv("MASKRCNN_CUDA_ARCHS", "80;90;100")
    kernels = set()
    for command in build_script.cuda_commands(nvcc, build_script.torch_folder(), tmp_path):
        done = subprocess.run([*command, "-Xptxas=-v"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.lower()
        entries = re.findall(r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill", done.stderr, re.S)
        assert [(kernel, arch, int(bytes)) for kernel, arch, bytes in entries if int(bytes)] == []
        kernels.update((kernel, arch) for kernel, arch, _ in entries)
    assert len({kernel for kernel, _ in kernels}) >= 20
    assert {arch for _, arch in kernels} == {"sm_80", "sm_90", "sm_100"}
