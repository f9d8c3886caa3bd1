from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from bundler.errors import ExportError
from bundler.graphs.exported_graph import ExportedGraph, save_graph
from bundler.graphs.host_runs import TorchAgreement, agree_with_torch, require_informative, run_reference
from bundler.models.mobilenet_v2 import mobilenet_v2

Exported = Any  # of conftest.py


def compare(exported: Exported, graph: ExportedGraph, golden: Tensor) -> TorchAgreement:
    return agree_with_torch(
        graph,
        run_reference(graph, golden.numpy(), "all"),
        torch_outputs=exported.torch_outputs,
        fp32_outputs=exported.fp32_outputs,
        profile=exported.target.export,
    )


def changed(exported: Exported, folder: Path, change: Callable[[onnx.ModelProto], None]) -> ExportedGraph:
    model = onnx.load(exported.graph.path)
    change(model)
    graph = save_graph(ir.from_proto(model), folder / "changed.onnx", opset=13, quantized=exported.graph.quantized)
    return dataclasses.replace(graph, rounding=exported.graph.rounding)


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    tensors: list[onnx.TensorProto] = list(model.graph.initializer)
    return next(tensor for tensor in tensors if tensor.name == name)


def replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), tensor.name))


def dequantized(model: onnx.ModelProto, index: int, operand: int) -> onnx.NodeProto:
    """Return the node that dequantizes the weights (1) or the bias (2) of a convolution."""
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][index]
    nodes: list[onnx.NodeProto] = list(model.graph.node)
    return next(node for node in nodes if convolution.input[operand] in node.output)


def test_onnx_runtime_agrees_with_torch(fp32: Exported, int8: Exported, golden: Tensor) -> None:
    assert compare(fp32, fp32.graph, golden).max_steps is None
    agreement = compare(int8, int8.graph, golden)
    assert agreement.max_steps is not None
    assert 0 < agreement.max_steps <= int8.target.export.torch_max_steps
    assert 0 < agreement.equal_share < 1


def test_every_optimization_level_gives_the_same_integers(int8: Exported, golden: Tensor) -> None:
    outputs = run_reference(int8.graph, golden.numpy(), "all")
    assert np.array_equal(run_reference(int8.graph, golden.numpy(), "extended"), outputs)


@pytest.mark.parametrize("index", [0, 20, 51])
def test_another_weight_scale_is_noticed(index: int, int8: Exported, golden: Tensor, tmp_path: Path) -> None:
    def double(model: onnx.ModelProto) -> None:
        for operand in (1, 2):  # the bias as well, whose scale must stay the product of the input's and the weights'
            scale = constant(model, dequantized(model, index, operand).input[1])
            replace(scale, numpy_helper.to_array(scale) * 2)

    with pytest.raises(
        ExportError, match=r"does not compute what its torch model computes.*(quantization steps|SQNR against FP32)"
    ):
        compare(int8, changed(int8, tmp_path, double), golden)


def test_a_weight_of_the_other_sign_is_noticed(int8: Exported, golden: Tensor, tmp_path: Path) -> None:
    def negate(model: onnx.ModelProto) -> None:
        weights = constant(model, dequantized(model, 0, 1).input[0])
        values = numpy_helper.to_array(weights).copy()
        values[0] = -np.clip(values[0], -127, 127)
        replace(weights, values)

    with pytest.raises(ExportError, match="does not compute what its torch model computes"):
        compare(int8, changed(int8, tmp_path, negate), golden)


def test_a_hundredth_of_one_float_weight_is_noticed(fp32: Exported, golden: Tensor, tmp_path: Path) -> None:
    def nudge(model: onnx.ModelProto) -> None:
        weights = constant(model, "classifier.1.weight")
        values = numpy_helper.to_array(weights).copy()
        values[3, np.abs(values[3]).argmax()] *= np.float32(1.01)
        replace(weights, values)

    with pytest.raises(ExportError, match=r"SQNR against torch is .* dB, and at least 80 dB are required"):
        compare(fp32, changed(fp32, tmp_path, nudge), golden)


def test_one_value_too_many_steps_from_torch_is_noticed(int8: Exported, golden: Tensor) -> None:
    """Also if ONNX Runtime is closer to FP32 than torch is."""
    outputs = int8.graph.rounding.applied(run_reference(int8.graph, golden.numpy(), "all"))
    allowed = int8.target.export.torch_max_steps

    def torch_is(steps: int) -> TorchAgreement:
        torch_outputs = outputs.copy()
        torch_outputs[1, 3] += np.float32(steps * int8.graph.output_step)
        return agree_with_torch(
            int8.graph, outputs, torch_outputs=torch_outputs, fp32_outputs=outputs, profile=int8.target.export
        )

    agreement = torch_is(allowed)
    assert agreement.max_steps == allowed
    assert agreement.equal_share == (outputs.size - 1) / outputs.size
    with pytest.raises(
        ExportError, match=f"differ from torch's INT8 by up to {allowed + 1} quantization steps, and {allowed} are allowed"
    ):
        torch_is(allowed + 1)


def test_more_steps_are_allowed_where_quantization_itself_makes_more_noise(int8: Exported, golden: Tensor) -> None:
    outputs = int8.graph.rounding.applied(run_reference(int8.graph, golden.numpy(), "all"))
    allowed = int8.target.export.torch_max_steps
    torch_outputs = outputs.copy()
    torch_outputs[1, 3] += np.float32((allowed + 1) * int8.graph.output_step)
    generator = np.random.default_rng(0)

    def with_noise(steps: float) -> TorchAgreement:
        noise = generator.normal(0, steps * int8.graph.output_step, outputs.shape)
        fp32 = (outputs + noise).astype(np.float32)
        return agree_with_torch(int8.graph, outputs, torch_outputs=torch_outputs, fp32_outputs=fp32, profile=int8.target.export)

    with pytest.raises(ExportError, match=f"up to {allowed + 1} quantization steps"):
        with_noise(1)
    assert with_noise(allowed / 5).max_steps == allowed + 1


def test_losing_more_than_torch_is_noticed(int8: Exported, golden: Tensor) -> None:
    """Within the allowed steps, and still too far from FP32."""
    outputs = run_reference(int8.graph, golden.numpy(), "all")
    away = np.where(outputs >= int8.fp32_outputs, 1, -1) * np.float32(20 * int8.graph.output_step)
    close = int8.fp32_outputs + (int8.torch_outputs - int8.fp32_outputs) / 100
    with pytest.raises(
        ExportError, match=r"SQNR against FP32 is .* dB lower than that of torch's INT8, and 3\.0 dB are allowed"
    ):
        agree_with_torch(
            int8.graph,
            (close + away).astype(np.float32),
            torch_outputs=close,
            fp32_outputs=int8.fp32_outputs,
            profile=int8.target.export,
        )


def test_the_distances_to_fp32_of_two_close_results_are_not_compared(int8: Exported) -> None:
    """Two results that are rounded independently differ by two draws of a small noise, whose ratio is random."""
    generator = np.random.default_rng(0)
    fp32, step = int8.fp32_outputs, np.float32(int8.graph.output_step)
    # More steps than any of these: it is about the ratio.
    limits = int8.target.export.model_copy(update={"torch_max_steps": 255})

    def noisy(share: float) -> np.ndarray:
        noise = generator.normal(0, share * fp32.std(), fp32.shape).astype(np.float32)
        rounded: np.ndarray = np.rint((fp32 + noise) / step) * step
        return rounded

    def agree(torch_noise: float, noise: float) -> TorchAgreement:
        outputs = noisy(noise)
        return agree_with_torch(int8.graph, outputs, torch_outputs=noisy(torch_noise), fp32_outputs=fp32, profile=limits)

    assert agree(0.03, 0.06).equal_share < 1  # 6 dB further, and 23 dB from each other
    with pytest.raises(ExportError, match=r"SQNR against FP32 is .* dB lower than that of torch's INT8"):
        agree(0.15, 0.5)


def test_outputs_that_cannot_be_verified_are_refused(golden: Tensor, fp32: Exported) -> None:
    require_informative("mobilenet_v2", fp32.torch_outputs)
    with torch.inference_mode():
        fresh = mobilenet_v2(num_classes=10)(golden).numpy()
    assert float(np.abs(fresh).max()) < 1e-6  # any comparison of these holds, for any bug
    with pytest.raises(
        ExportError,
        match=r"mobilenet_v2 with these weights cannot be verified: on the golden inputs, the outputs are almost zero",
    ):
        require_informative("mobilenet_v2", fresh)
    with pytest.raises(ExportError, match="the same for every image"):
        require_informative("mobilenet_v2", np.repeat(fp32.torch_outputs[:1], 4, axis=0))
