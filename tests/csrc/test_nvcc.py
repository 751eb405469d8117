"""The CUDA sources as nvcc compiles them for the build."""

import re
import subprocess

import pytest


def test_an_older_toolkit_compiles_for_the_gpus_that_it_knows(build_script, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr(build_script, "CUDA_ARCHS", None)
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nprintf 'compute_80\\ncompute_89\\ncompute_90\\n'\n")
    nvcc.chmod(0o755)
    for command in build_script.cuda_commands(str(nvcc), tmp_path, tmp_path):
        assert [word.rpartition("=")[2] for word in command if "gencode" in word] == ["sm_80", "sm_90", "compute_90"]


@pytest.mark.slow
def test_kernels_spill_no_registers(build_script, root, tmp_path, monkeypatch):
    nvcc = build_script.cuda_compiler()
    if nvcc is None:
        pytest.skip("no CUDA toolkit")
    monkeypatch.chdir(root)
    monkeypatch.setattr(build_script, "CUDA_ARCHS", "80;90;100")
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
