"""Blocks that stay in float: which ones could, and that they win what their layers lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bundler.graphs.comparison import sqnr_db
from bundler.graphs.exporter import export_onnx
from bundler.graphs.host_runs import run_reference
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, find_float_blocks, quantized_engine, with_float_blocks
from bundler.targets import find_target

TARGET = find_target("arm64").quantization

# Of each family, the largest blocks of two to six layers and a seventh of all: a few of them, what they hold, and how many.
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
    """Return the INT8 network and the float one."""
    parser = load_parser(find_model(name)[1])
    prepared = parser(weights=weights_of(name), num_classes=10, quantize=True, target=TARGET)
    calibrate(prepared, calibration.split(8))
    return convert(prepared, TARGET), parser(weights=weights_of(name), num_classes=10)


def test_blocks_are_found_that_hold_a_layer_once_at_most(
    name: str, networks: tuple[nn.Module, nn.Module], golden: Tensor
) -> None:
    with quantized_engine(TARGET.engine):
        blocks = find_float_blocks(networks[0], golden[:1])
    layers = {block.name: block.layers for block in blocks}
    some, count = BLOCKS[name]
    assert {block: layers.get(block) for block in some} == some
    assert len(layers) == count
    assert not any(one != other and one.startswith(f"{other}.") for one in layers for other in layers)


def test_a_block_in_float_computes_what_the_float_networks_does(networks: tuple[nn.Module, nn.Module], golden: Tensor) -> None:
    """Its inputs and its output are rounded to 8 bits, and nothing else is."""
    converted, float_model = networks
    with quantized_engine(TARGET.engine), torch.inference_mode():
        blocks = find_float_blocks(converted, golden[:1])
        before = converted(golden)
        mixed = with_float_blocks(converted, float_model, blocks)
        assert torch.equal(converted(golden), before)  # the network that was given stays as it is
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
            furthest = float((output.dequantize() - expected.clamp(low, high)).abs().max())
            assert furthest <= 0.501 * block.scale  # a half, and what folding BatchNorm rounds


def test_onnx_runtime_computes_them_in_float_and_nothing_else(
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
    # The integer layers between them round differently in torch and ONNX Runtime: 19 to 25 dB, with the last bits of the CPU.
    assert sqnr_db(expected, outputs) > 14
