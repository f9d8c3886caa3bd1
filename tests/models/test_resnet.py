from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime as ort
from torch import Tensor, nn

from bundler.graphs.exporter import export_onnx
from bundler.models.resnet import QuantizableBasicBlock, QuantizableBottleneck, resnet18, resnet50
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import TargetProfile


def test_onnx_runtime_computes_all_of_resnet18_in_integers(
    target: TargetProfile,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    calibration: Tensor,
    golden: Tensor,
    tmp_path: Path,
) -> None:
    prepared = resnet18(weights=weights_of("resnet18"), num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    with quantized_engine(target.quantization.engine):
        graph = export_onnx(
            convert(prepared, target.quantization), golden[:2], tmp_path / "int8.onnx", opset=13, quantized=True
        )
    assert graph.float_operators == {}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(graph.path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 20  # 17 of the blocks and the stem, 3 of the shortcuts
    assert kinds.count("QLinearAdd") == 8
    assert kinds.count("QLinearGlobalAveragePool") == 1
    assert kinds.count("QGemm") == 1
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 0)  # the QGemm gives its sums


def test_every_residual_is_added_in_quantized_arithmetic() -> None:
    for model, block, count in ((resnet18(), QuantizableBasicBlock, 8), (resnet50(), QuantizableBottleneck, 16)):
        blocks = [module for module in model.modules() if isinstance(module, block)]
        assert len(blocks) == count
        model.fuse_model(is_qat=False)
        # Fusing takes the ReLU behind each convolution but the block's last: that one comes behind the addition.
        fused = sum(isinstance(module, nn.intrinsic.ConvReLU2d) for module in model.modules())
        assert fused == 1 + count * (1 if block is QuantizableBasicBlock else 2)
