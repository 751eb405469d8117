"""The compiled operators as citizens of PyTorch: schemas, shapes, autograd, compilation, threads, instruction sets."""

import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.library import opcheck

from projects_maskrcnn import ops
from projects_maskrcnn.ops import native as native_module

SCALES = [1 / 4, 1 / 8, 1 / 16]
COUNTS = [5, 0, 7]


def pyramid(channels=6, dtype=torch.float32, channels_last=False, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = [torch.randn(3, channels, 32 >> i, 40 >> i, generator=generator, dtype=torch.float64) for i in range(3)]
    return [x.to(dtype, memory_format=layout).requires_grad_(requires_grad) for x in maps]


def some_boxes(count=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 120 - 15
    return torch.cat([corner, corner + 2 ** (2 + 5 * torch.rand(count, 2, generator=generator))], 1)


def arguments(features, rounding=0, sampling_ratio=0):
    return features, some_boxes(), COUNTS, SCALES, 3, 2, sampling_ratio, True, rounding, 32.0, 3


@pytest.mark.parametrize("rounding", [0, 1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["roi_average", "roi_max"])
def test_opcheck_of_roi_layers(native, name, channels_last, rounding):
    for requires_grad in (False, True):
        features = pyramid(channels_last=channels_last, requires_grad=requires_grad)
        opcheck(getattr(native, name).default, arguments(features, rounding))


@pytest.mark.parametrize("name", ["roi_average", "roi_max"])
def test_opcheck_of_maps_of_a_cell(native, name):
    """Such a map is NCHW and channels_last at once."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.25, 0, 0.5, 1]])
    features = [torch.randn(1, 6, 1, 1)]
    opcheck(getattr(native, name).default, (features, boxes, [2], [1.0], 3, 2, 0, True, 0, 224.0, 4))


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_of_gradients(native, channels_last):
    features, boxes, counts, scales, *_, aligned, rounding, size, level = arguments(pyramid())
    heights, widths = [x.shape[2] for x in features], [x.shape[3] for x in features]
    rest = (boxes, counts, scales, 3, heights, widths, 0, aligned, rounding, size, level, channels_last)
    grad = torch.randn(len(boxes), 6, 3, 2)
    opcheck(native.roi_average_backward.default, (grad, *rest))
    opcheck(native.roi_max_backward.default, (grad, torch.zeros(grad.shape, dtype=torch.int32), *rest))


def test_opcheck_of_nms_and_masks(native):
    boxes = some_boxes()
    opcheck(native.nms.default, (boxes, torch.rand(12), None, 0.5))
    opcheck(native.nms.default, (boxes, torch.rand(12), torch.arange(12) % 3, 0.5))
    opcheck(native.paste_masks.default, (torch.rand(12, 5, 5), boxes, 30, 40, 0.5))
    opcheck(native.paste_masks.default, (torch.rand(12, 5, 5), boxes, 30, 40, -1.0))
    opcheck(native.masks_to_rle.default, (torch.rand(12, 5, 5), boxes, 30, 40, 0.5))


class Detect(torch.nn.Module):
    """What a detector does with the operators."""

    def forward(self, p2, p3, boxes, scores, masks):
        kept = ops.batched_nms(boxes, scores, scores.round().long(), 0.3)
        pooled = ops.roi_align([p2, p3], [boxes[:3], boxes[3:]], (3, 2), SCALES[:2], canonical_box_size=32)
        warped = ops.roi_warp([p2], [boxes[:3], boxes[3:]], 2, [SCALES[0]], mode="max")
        return kept, pooled, warped, ops.paste_masks(masks, boxes, (30, 40))


def detect_inputs():
    p2, p3 = (x[:2].contiguous() for x in pyramid()[:2])
    return p2, p3, some_boxes(), torch.rand(12, generator=torch.Generator().manual_seed(2)), torch.rand(12, 7, 7)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(native, backend):
    torch._dynamo.reset()
    inputs = detect_inputs()
    expected = Detect()(*inputs)
    got = torch.compile(Detect(), fullgraph=True, backend=backend, dynamic=True)(*inputs)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_gradient_of_a_compiled_function(native):
    torch._dynamo.reset()

    def loss(maps, boxes):
        return ops.roi_align(maps, [boxes[:5], boxes[5:5], boxes[5:]], 3, SCALES, canonical_box_size=32).pow(2).sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        maps = pyramid(requires_grad=True)
        function(maps, some_boxes()).backward()
        grads.append([x.grad for x in maps])
    for eager, compiled in zip(*grads, strict=True):
        assert eager.any() and torch.equal(eager, compiled)


def test_exports(native):
    inputs = detect_inputs()
    program = torch.export.export(Detect(), inputs)
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"maskrcnn.roi_average.default", "maskrcnn.roi_max.default", "maskrcnn.nms.default"} <= targets
    for a, b in zip(program.module()(*inputs), Detect()(*inputs), strict=True):
        assert torch.equal(a, b)


def test_a_trace_takes_other_numbers_of_boxes(native):
    def pool(x, first, second):
        return ops.roi_align(x, [first, second], 3, SCALES[0])

    x, boxes = pyramid()[0][:2], some_boxes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns of the checks that it leaves out
        traced = torch.jit.trace(pool, (x, boxes[:8], boxes[8:]))
    assert torch.equal(traced(x, boxes[:3], boxes[3:]), pool(x, boxes[:3], boxes[3:]))


def test_autocast(native):
    maps = pyramid(requires_grad=True)
    conv = torch.nn.Conv2d(6, 6, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = [conv(maps[0]), *maps[1:]]
        assert mixed[0].dtype == torch.bfloat16 and mixed[1].dtype == torch.float32
        out = ops.roi_align(mixed, some_boxes().split(COUNTS), 3, SCALES, canonical_box_size=32)
        assert out.dtype == torch.float32
        low = ops.roi_align([mixed[0]], some_boxes().bfloat16().split(COUNTS), 3, SCALES[:1])
        assert low.dtype == torch.bfloat16
    out.sum().backward()
    assert all(x.grad.dtype == torch.float32 and x.grad.any() for x in (*maps, conv.weight))


@pytest.mark.parametrize("mode", ["average", "max"])
def test_a_second_derivative_is_refused(native, mode):
    (x, *_) = pyramid(requires_grad=True)
    out = ops.roi_align([x], some_boxes().split(COUNTS), 3, [0.25], mode=mode)
    (grad,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["average", "max"])
def test_the_same_bits_for_any_number_of_threads(native, mode, dtype, channels_last):
    threads, results = torch.get_num_threads(), []
    boxes = some_boxes(300).split([120, 0, 180])
    for count in (1, 2, 3, 4, 4):
        torch.set_num_threads(count)
        maps = pyramid(72, dtype, channels_last, requires_grad=True)
        out = ops.roi_align(maps, boxes, 7, SCALES, canonical_box_size=32, mode=mode)
        assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        grad = torch.cos(torch.arange(out.numel())).view(out.shape).to(out)
        out.backward(grad)
        results.append([out, *(x.grad for x in maps)])
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


COMPUTE = """
import sys, torch
from projects_maskrcnn import ops
data = torch.load(sys.argv[1])
out = ops.roi_align(data["x"].requires_grad_(), data["boxes"], 7, 0.25)
out.backward(torch.cos(torch.arange(out.numel())).view(out.shape).to(out))
kept = ops.nms(data["boxes"][:, 1:], data["scores"], 0.3)
torch.save((torch.ops.maskrcnn.cpu_capability(), out.detach(), data["x"].grad, kept), sys.argv[2])
"""


@pytest.mark.parametrize("channels_last", [False, True])
def test_every_instruction_set_gives_the_same(native, root, tmp_path, channels_last):
    x = pyramid(channels_last=channels_last)[0]
    indexed = torch.cat([torch.arange(60)[:, None] % 3, some_boxes(60)], 1)
    torch.save({"x": x, "boxes": indexed, "scores": torch.rand(60)}, tmp_path / "in.pt")
    results = {}
    for asked in ("default", "avx2", "avx512"):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": asked, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", COMPUTE, tmp_path / "in.pt", tmp_path / "out.pt"]
        subprocess.run(command, env=environment, check=True)
        name, *result = torch.load(tmp_path / "out.pt")
        results[name] = result
    assert "baseline" in results
    out, grad, kept = results["baseline"]
    for other_out, other_grad, other_kept in results.values():
        torch.testing.assert_close(other_out, out, rtol=0, atol=2e-6)
        torch.testing.assert_close(other_grad, grad, rtol=0, atol=2e-5)
        assert torch.equal(other_kept, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": []}, "features of 0 levels"),
        ({"features": [torch.zeros(3, 2, 4)]}, r"features must have shape \(N, C, H, W\); got \(3, 2, 4\)"),
        ({"features": [torch.zeros(3, 2, 4, 0)]}, "features must have a cell or more"),
        ({"features": [torch.zeros(3, 2, 4, 4, dtype=torch.int64)]}, "features must be float64, float32"),
        ({"boxes": [torch.zeros(1, 4)] * 2}, "features of 3 images, but boxes of 2"),
        ({"boxes": torch.zeros(3, 4)}, r"must have shape \(R, 5\).*got \(3, 4\)"),
        ({"boxes": [torch.zeros(2, 5)] * 3}, r"boxes of an image must have shape \(R, 4\).*got \(2, 5\)"),
        ({"boxes": [torch.zeros(4, 4), torch.zeros(4), torch.zeros(2, 4)]}, r"shape \(R, 4\).*got \(4,\)"),
        ({"output_size": 0}, "the output must have 1 to"),
        ({"output_size": (3, -1)}, "the output must have 1 to"),
        ({"spatial_scale": [0.5, 0.25]}, "features of 1 levels, but spatial_scale of 2"),
        ({"spatial_scale": -1.0}, "scales must be positive"),
        ({"spatial_scale": math.nan}, "scales must be positive"),
        ({"sampling_ratio": -1}, "sampling_ratio must be 0"),
        ({"mode": "median"}, "mode must be 'average' or 'max'"),
    ],
)
def test_errors(implementation, change, message):
    given = {"features": [torch.zeros(3, 2, 4, 4)], "boxes": [torch.zeros(2, 4)] * 3, "output_size": 2}
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.roi_align(**{**given, **change})


def test_levels_that_differ_are_errors(operators):
    boxes = torch.zeros(1, 4)
    maps = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)]
    with pytest.raises(RuntimeError, match=r"agree in images and channels; got \(1, 2, 4, 4\) and \(1, 3, 4, 4\)"):
        operators.roi_max(maps, boxes, [1], [1.0, 0.5], 2, 2, 0, True, 0, 224.0, 4)
    with pytest.raises(RuntimeError, match="counts those of 1"):
        operators.roi_average([torch.zeros(2, 2, 4, 4)], boxes, [1], [1.0], 2, 2, 0, True, 0, 224.0, 4)
    with pytest.raises(RuntimeError, match="adds up to 3, but there are 1"):
        operators.roi_average([torch.zeros(1, 2, 4, 4)], boxes, [3], [1.0], 2, 2, 0, True, 0, 224.0, 4)
    with pytest.raises(RuntimeError, match="scales must have 1 to 8 levels; got 9"):
        operators.roi_average([torch.zeros(1, 2, 4, 4)] * 9, boxes, [1], [1.0] * 9, 2, 2, 0, True, 0, 224.0, 4)
    with pytest.raises(RuntimeError, match="one dtype"):
        operators.roi_average([maps[0], maps[0].double()], boxes, [1], [1.0, 0.5], 2, 2, 0, True, 0, 224.0, 4)


def test_a_forged_argmax_writes_nothing(native):
    features, boxes, counts, scales, *_ = arguments(pyramid())
    heights, widths = [x.shape[2] for x in features], [x.shape[3] for x in features]
    for rounding in (0, 2):
        for number in (10**6, 2**31 - 1, -(2**31)):
            forged = torch.full((len(boxes), 6, 3, 2), number, dtype=torch.int32)
            rest = (boxes, counts, scales, 3, heights, widths, 0, True, rounding, 32.0, 3, False)
            grads = native.roi_max_backward(torch.ones(forged.shape), forged, *rest)
            assert not any(grad.any() for grad in grads)


def test_without_a_library_the_reference_serves_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(native_module, "DEVICES", frozenset())
    native_module._say_that_the_reference_serves.cache_clear()
    for _ in range(2):
        assert ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "pip install ." in caplog.text


def test_a_library_that_does_not_load_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "libmaskrcnn.so").write_text("no library")
    monkeypatch.setattr(native_module, "LIBRARY", tmp_path / "libmaskrcnn.so")
    with pytest.raises(ImportError, match="do not load with torch .*pip install"):
        native_module._load()


def test_forward_mode_is_refused(native):
    boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0]])]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda x: ops.roi_align(x, boxes, 2), (torch.ones(1, 2, 9, 9),), (torch.ones(1, 2, 9, 9),))
    with forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
        ops.roi_align(forward_ad.make_dual(torch.ones(1, 2, 9, 9), torch.ones(1, 2, 9, 9)), boxes, 2)


def test_tensors_on_several_devices_are_refused():
    x, boxes = torch.ones(1, 2, 4, 4), torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    with pytest.raises(ValueError, match="one device; got features on cpu, boxes on meta"):
        ops.roi_align(x, [boxes.to("meta")], 2)
    with pytest.raises(ValueError, match="one device; got features on cpu, features on meta"):
        ops.roi_align([x, x.to("meta")], [boxes], 2, [1, 0.5])
    with pytest.raises(ValueError, match="one device; got masks on cpu, boxes on meta"):
        ops.paste_masks(x[:, 0], boxes.to("meta"), (4, 4))


def test_an_error_is_the_same_words_on_either_implementation(operators):
    with pytest.raises(RuntimeError) as error:
        operators.nms(torch.zeros(3, 5), torch.zeros(3), None, 0.5)
    assert str(error.value) == "boxes must have shape (N, 4); got (3, 5)"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": np.zeros((1, 2, 4, 4))}, TypeError, "features must be of tensors, not of ndarray"),
        ({"boxes": [np.zeros((1, 4))]}, TypeError, "boxes must be of tensors, not of ndarray"),
        ({"output_size": (2, 2, 2)}, ValueError, r"output_size must be a number or \(height, width\), got \(2, 2, 2\)"),
        ({"output_size": 7.0}, TypeError, "'float' object cannot be interpreted as an integer"),
        ({"sampling_ratio": 2.5}, TypeError, "'float' object cannot be interpreted as an integer"),
        ({"canonical_box_size": 0.0}, RuntimeError, "canonical_box_size must be positive; got 0"),
        ({"canonical_box_size": math.nan}, RuntimeError, "canonical_box_size must be positive; got nan"),
    ],
)
def test_what_is_no_argument_at_all(implementation, change, error, message):
    given = {"features": torch.ones(1, 2, 4, 4), "boxes": [torch.zeros(0, 4)], "output_size": 2}
    with pytest.raises(error, match=message):
        ops.roi_align(**{**given, **change})


@pytest.mark.parametrize("scales", [[1 / 8, 1 / 4], [1 / 4, 1 / 10], [1 / 3, 1 / 6]])
def test_levels_of_no_pyramid_are_refused(implementation, scales):
    maps = [torch.ones(1, 2, 8, 8), torch.ones(1, 2, 4, 4)]
    with pytest.raises(ValueError, match="not consecutive powers of two"):
        ops.roi_align(maps, [torch.zeros(0, 4)], 2, scales)


def test_an_output_size_of_other_integers():
    x, boxes = torch.rand(1, 2, 4, 4), [torch.tensor([[0.0, 0.0, 3.0, 3.0]])]
    assert torch.equal(ops.roi_align(x, boxes, np.int64(2)), ops.roi_align(x, boxes, [2, 2]))
