"""What only DenseNet has: BatchNorms with no convolution before them, in INT8 to the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from torch import Tensor, nn

from bundler.graphs.exporter import export_onnx
from bundler.models.densenet import densenet121
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.quantization.batch_norm import QuantizedBatchNormReLU
from bundler.targets import TargetProfile

LAYERS, TRANSITIONS = 6 + 12 + 24 + 16, 3


def test_norms_are_folded_where_a_convolution_precedes_and_depthwise_elsewhere(
    weights_of: Callable[[str], Mapping[str, Tensor]],
    target: TargetProfile,
    calibration: Tensor,
    golden: Tensor,
    tmp_path: Path,
) -> None:
    prepared = densenet121(weights=weights_of("densenet121"), num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    converted = convert(prepared, target.quantization)
    assert not [module for module in converted.modules() if isinstance(module, nn.BatchNorm2d)]
    norms = [module for module in converted.modules() if isinstance(module, QuantizedBatchNormReLU)]
    assert len(norms) == LAYERS + TRANSITIONS + 1  # and the one behind the last block
    with quantized_engine(target.quantization.engine):
        graph = export_onnx(converted, golden[:2], tmp_path / "int8.onnx", opset=13, quantized=True)
    assert graph.float_operators == {}
    operators = Counter(node.op_type for node in onnx.load(graph.path).graph.node)
    assert operators["Conv"] == 120 + len(norms)
    assert operators["Concat"] == LAYERS + 4  # each layer reads all before it, and so does what follows each of four blocks
    assert "BatchNormalization" not in operators
