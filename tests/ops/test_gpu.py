"""What only a GPU has: streams, graphs, calls that the host does not wait for, and assertions in place of errors."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from projects_maskrcnn import ops
from projects_maskrcnn.ops import native

pytestmark = pytest.mark.skipif(
    "cuda" not in native.DEVICES or not torch.cuda.is_available(), reason="no GPU, or operators without CUDA"
)
SCALES = [1 / 4, 1 / 8]


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 64, 48 >> i, 64 >> i, generator=generator) for i in range(2)]
    return [x.cuda().contiguous(memory_format=torch.channels_last) for x in maps]


@pytest.fixture
def boxes():
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2, 30, 2, generator=generator) * 100
    return list(torch.cat([corner, corner + 4 + 90 * torch.rand(2, 30, 2, generator=generator)], 2).cuda())


def pool(maps, boxes, **options):
    return ops.roi_align(maps, boxes, 7, SCALES, canonical_box_size=64, canonical_level=3, **options)


def pooled_and_gradients(maps, boxes, mode="average"):
    leaves = [x.detach().requires_grad_() for x in maps]
    out = pool(leaves, boxes, mode=mode)
    return out.detach(), *torch.autograd.grad(out.square().sum(), leaves)


def kept_boxes(maps, boxes):
    return (ops.nms(torch.cat(boxes), maps[0][0, 0, 0, :60], 0.3),)


def pasted_masks(maps, boxes):
    return (ops.paste_masks(maps[0][0, :60, :28, :28], torch.cat(boxes), (120, 160), threshold=0),)


@pytest.mark.parametrize(
    "work", [pooled_and_gradients, partial(pooled_and_gradients, mode="max"), kept_boxes, pasted_masks]
)
def test_kernels_run_on_the_current_stream(work, maps, boxes):
    expected = work(maps, boxes)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        results = work([x + 0 for x in maps], boxes)  # these maps are not there yet
    stream.synchronize()
    assert all(map(torch.equal, results, expected))


def test_a_graph_captures_both_passes(maps, boxes):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = pooled_and_gradients(maps, boxes)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = pooled_and_gradients(maps, boxes)
    for result in results:
        result.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, results, expected))


def test_the_host_does_not_wait(maps, boxes):
    leaves = [x.requires_grad_() for x in maps]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for mode in ("average", "max"):
            pool(leaves, boxes, mode=mode).sum().backward()
        ops.paste_masks(torch.rand(60, 28, 28, device="cuda"), torch.cat(boxes), (120, 160))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("index", [-1.0, 2.0, float("nan")])
def test_a_wrong_image_index_ends_in_an_assertion(index):
    code = f"""
import torch
from projects_maskrcnn import ops
rois = torch.tensor([[float("{index}"), 0, 0, 5, 5]], device="cuda")
ops.roi_align(torch.zeros(2, 8, 9, 9, device="cuda"), rois, 7)
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "image index" in done.stdout + done.stderr
