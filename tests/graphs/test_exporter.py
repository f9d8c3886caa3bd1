from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from bundler.errors import ExportError
from bundler.graphs.exporter import export_onnx
from bundler.quantization import quantized_engine

Exported = Any  # of conftest.py


def test_the_findings_of_a_float_graph(fp32: Exported) -> None:
    graph = fp32.graph
    assert not graph.quantized
    assert (graph.opset, graph.quantize_nodes, graph.dequantize_nodes, graph.float_operators) == (13, 0, 0, {})
    assert graph.bytes == graph.path.stat().st_size


def test_the_findings_of_an_int8_graph(int8: Exported) -> None:
    graph = int8.graph
    assert graph.quantized
    assert graph.opset == 13
    assert graph.quantize_nodes > 53  # one behind each convolution, and the input's
    assert graph.dequantize_nodes > 53
    assert graph.float_operators == {}
    with quantized_engine(int8.target.quantization.engine):
        assert graph.output_step == pytest.approx(int8.model.classifier[1].scale)


def test_every_convolution_runs_in_integers(int8: Exported, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(int8.graph.path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 52
    assert kinds.count("QLinearAdd") == 10
    assert kinds.count("QGemm") == 1
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 0  # the last product gives its accumulators


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_axis_is_dynamic(batch: int, fp32: Exported, int8: Exported, golden: Tensor) -> None:
    for exported in (fp32, int8):
        session = ort.InferenceSession(exported.graph.path, providers=["CPUExecutionProvider"])
        (outputs,) = session.run(["logits"], {"image": golden[:batch].numpy()})
        assert outputs.shape == (batch, 10)


def test_exporting_twice_gives_the_same_bytes(fp32: Exported, int8: Exported, golden: Tensor, tmp_path: Path) -> None:
    for exported in (fp32, int8):
        quantized = exported.graph.quantized
        with quantized_engine(exported.target.quantization.engine):
            again = export_onnx(exported.model, golden[:2], tmp_path / "again.onnx", opset=13, quantized=quantized)
        assert again.sha256 == exported.graph.sha256
        assert (tmp_path / "again.onnx").read_bytes() == exported.graph.path.read_bytes()


def test_a_graph_holds_no_path_of_this_machine(fp32: Exported, int8: Exported) -> None:
    for exported in (fp32, int8):
        assert str(Path(__file__).parents[2]).encode() not in exported.graph.path.read_bytes()
        assert b".py" not in exported.graph.path.read_bytes()


def test_a_model_in_train_mode_is_refused(golden: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Sequential is in train mode"):
        export_onnx(nn.Sequential(nn.Flatten()).train(), golden, tmp_path / "a.onnx", opset=13, quantized=False)
    assert list(tmp_path.iterdir()) == []


class Erfinv(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        inverse: Tensor = torch.special.erfinv(x)
        return inverse.flatten(1)


def test_an_operator_without_a_form_in_onnx_is_refused_by_name(
    golden: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = torch.backends.quantized.engine
    with pytest.raises(ExportError, match=r"cannot export Erfinv to opset 13.*erfinv"):
        export_onnx(Erfinv().eval(), golden[:2], tmp_path / "a.onnx", opset=13, quantized=False)
    assert capfd.readouterr().out == ""  # the exporter prints the whole graph
    assert torch.backends.quantized.engine == engine


def test_a_float_model_is_not_taken_for_a_quantized_one(fp32: Exported, golden: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"comes from Gemm .* not from a DequantizeLinear"):
        export_onnx(fp32.model, golden[:2], tmp_path / "a.onnx", opset=13, quantized=True)
