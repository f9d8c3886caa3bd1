"""Mixed precision: the blocks that can be computed in float, and what they compute in torch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bundler.device.numerics import sqnr_db
from bundler.graphs.exporter import export_onnx
from bundler.graphs.host_runs import run_reference
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, find_float_blocks, quantized_engine, with_float_blocks
from bundler.targets import find_target

TARGET = find_target("arm64").quantization

# For each family, some of its blocks with their numbers of layers, and the number of blocks.
BLOCKS = {
    "resnet18": ({"layer1.0": 2, "layer2.0": 3}, 8),
    "mobilenet_v2": ({"features.1": 2, "features.7": 3}, 17),
    "mobilenet_v3_small": ({"features.2": 3, "features.4": 5, "classifier": 2}, 12),
    "densenet121": ({"features.denseblock1.denselayer1": 2, "features.denseblock4.denselayer16": 2}, 58),
    "efficientnet_b0": ({"features.1": 4, "features.2.0": 5}, 16),
}


@pytest.fixture(params=BLOCKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def networks(name: str, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor) -> tuple[nn.Module, nn.Module]:
    """Return the INT8 and the float network."""
    parser = load_parser(find_model(name)[1])
    prepared = parser(weights=weights_of(name), num_classes=10, quantize=True, target=TARGET)
    calibrate(prepared, calibration.split(8))
    return convert(prepared, TARGET), parser(weights=weights_of(name), num_classes=10)


def test_blocks_of_each_family(name: str, networks: tuple[nn.Module, nn.Module], golden: Tensor) -> None:
    with quantized_engine(TARGET.engine):
        blocks = find_float_blocks(networks[0], golden[:1])
    layers = {block.name: block.layers for block in blocks}
    some, count = BLOCKS[name]
    assert {block: layers.get(block) for block in some} == some
    assert len(layers) == count
    assert not any(one != other and one.startswith(f"{other}.") for one in layers for other in layers)


def test_a_float_block_computes_the_same_as_in_the_float_network(networks: tuple[nn.Module, nn.Module], golden: Tensor) -> None:
    """Only its inputs and its output are quantized."""
    converted, float_model = networks
    with quantized_engine(TARGET.engine), torch.inference_mode():
        blocks = find_float_blocks(converted, golden[:1])
        before = converted(golden)
        mixed = with_float_blocks(converted, float_model, blocks)
        assert torch.equal(converted(golden), before)  # the given network was not changed
        seen: dict[str, tuple[Any, Any]] = {}
        for block in blocks:
            mixed.get_submodule(block.name).register_forward_hook(
                lambda _module, inputs, output, name=block.name: seen.update(
                    {name: (tree_map(Tensor.dequantize, list(inputs)), output)}
                )
            )
        mixed(golden)
        for block in blocks:
            inputs, output = seen[block.name]
            expected = float_model.get_submodule(block.name)(*inputs)
            assert expected.std() > 0
            low, high = ((bound - block.zero_point) * block.scale for bound in (0, 255))
            error = float((output.dequantize() - expected.clamp(low, high)).abs().max())
            assert error <= 0.501 * block.scale  # half a step, and rounding of folded BatchNorms


def test_onnx_runtime_computes_only_these_blocks_in_float(
    networks: tuple[nn.Module, nn.Module], golden: Tensor, tmp_path: Path
) -> None:
    converted, float_model = networks
    with quantized_engine(TARGET.engine), torch.inference_mode():
        blocks = find_float_blocks(converted, golden[:1])
        chosen = [blocks[0], blocks[len(blocks) // 2], blocks[-1]]
        mixed = with_float_blocks(converted, float_model, chosen)
        layers = sum(block.layers for block in chosen)
        graph = export_onnx(mixed, golden[:2], tmp_path / "mixed.onnx", opset=13, quantized=True, float_layers=layers)
        expected = mixed(golden).numpy()
    assert graph.rounding is not None
    outputs = graph.rounding.applied(run_reference(graph, golden.numpy(), "all"))
    assert graph.float_layers == layers
    # Torch and ONNX Runtime round the INT8 layers differently; measured: 19 to 25 dB, depending on the CPU.
    assert sqnr_db(expected, outputs) > 14
