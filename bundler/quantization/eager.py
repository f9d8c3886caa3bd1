"""The steps of torch's eager-mode quantization: stubs, fuse, calibrate, convert, and the engine that executes INT8.

`bundler.quantization.preparation` has the step between fusing and calibration: qconfigs and `prepare`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic import BNReLU2d
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.nn.quantized import Linear as QuantizedLinear
from torch.ao.nn.quantized.modules.utils import WeightedQuantizedModule
from torch.ao.quantization import DeQuantStub, FakeQuantizeBase, QuantStub, fuse_modules_qat
from torch.ao.quantization import fuse_modules as fuse_modules_ptq
from torch.ao.quantization.quantization_mappings import get_default_static_quant_module_mappings

from bundler.errors import BundlerError
from bundler.quantization.batch_norm import QuantizableBatchNormReLU, QuantizedBatchNormReLU
from bundler.quantization.precision import double_precision
from bundler.targets import QuantizationProfile

__all__ = [
    "DeQuantStub",
    "FloatFunctional",
    "QuantStub",
    "calibrate",
    "convert",
    "disable_output_fake_quant",
    "fuse_modules",
    "output_layers",
    "quantized_engine",
]


def _fuse_batch_norm_relu(_is_qat: bool, norm: nn.BatchNorm2d, relu: nn.ReLU) -> QuantizableBatchNormReLU:
    return QuantizableBatchNormReLU(norm, relu)  # type: ignore[no-untyped-call]


# Replaces torch's fuser for this pair, whose converted module (quantized::batch_norm2d_relu) has no ONNX form.
_FUSERS = {"additional_fuser_method_mapping": {(nn.BatchNorm2d, nn.ReLU): _fuse_batch_norm_relu}}


def fuse_modules(model: nn.Module, names: Sequence[str] | Sequence[Sequence[str]], is_qat: bool | None) -> None:
    """Fuse child modules in place.

    For PTQ, the BatchNorm is folded into the convolution, which requires eval mode; for QAT it is kept for training.

    Args:
        model: the parent of the modules.
        names: of modules to fuse into one, for example `["conv1", "bn1", "relu"]`, or several such lists.
        is_qat: whether to fuse for QAT; None for the mode (`training`) that the model is in, as in docs/specification.md.
    """
    if is_qat is None:
        is_qat = model.training
    fuse: Callable[..., nn.Module] = fuse_modules_qat if is_qat else fuse_modules_ptq
    groups = [list(names)] if isinstance(names[0], str) else [list(group) for group in names]
    fuse(model, groups, inplace=True, fuse_custom_config_dict=_FUSERS)


def calibrate(prepared: nn.Module, batches: Iterable[Tensor]) -> int:
    """Run calibration images through a prepared model, so that its observers record the activation ranges.

    A model that was prepared for PTQ is run in float64, see `bundler.quantization.precision`; one that was prepared for QAT in
    float32, because fake quantization supports no other type.

    Args:
        prepared: the result of `load_fuse_prepare`; it is set to eval mode.
        batches: normalized images, float32 [N, 3, H, W] each.

    Returns:
        The number of images.
    """
    prepared.eval()
    is_qat = any(isinstance(module, FakeQuantizeBase) for module in prepared.modules())
    count = 0
    with nullcontext() if is_qat else double_precision(prepared), torch.inference_mode():
        for batch in batches:
            prepared(batch if is_qat else batch.double())
            count += len(batch)
    return count


def convert(prepared: nn.Module, target: QuantizationProfile) -> nn.Module:
    """Return a converted (INT8) copy of a calibrated or trained model.

    The weights are packed for the engine of the target: run the copy inside `quantized_engine(target.engine)`.

    Raises:
        BundlerError: this build of torch does not have the engine.
    """
    mapping: dict[Any, Any] = get_default_static_quant_module_mappings()
    mapping |= {BNReLU2d: QuantizedBatchNormReLU}
    with quantized_engine(target.engine), warnings.catch_warnings():
        # Torch's deprecation warning for quantized tensors; pyproject.toml limits the version of torch.
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor, torch\.quantize_per_channel", UserWarning)
        converted: nn.Module = torch.ao.quantization.convert(copy.deepcopy(prepared).eval(), mapping)
    return converted


@contextmanager
def quantized_engine(name: str) -> Iterator[None]:
    """Set `torch.backends.quantized.engine` while the block runs, and restore it afterwards.

    Args:
        name: `fbgemm` or `qnnpack`.

    Raises:
        BundlerError: this build of torch does not have the engine.
    """
    if name not in torch.backends.quantized.supported_engines:
        supported = ", ".join(torch.backends.quantized.supported_engines)
        raise BundlerError(
            f"this build of torch has no quantized engine {name!r} (it has: {supported})",
            next_step="Build on an x86-64 or arm64 Linux machine with the torch of constraints.txt.",
        )
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@runtime_checkable
class _Detector(Protocol):
    """A detector, which returns the convolutions whose feature maps it decodes."""

    def prediction_layers(self) -> list[nn.Conv2d]: ...


def output_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that compute a network's outputs: a detector's prediction layers or a classifier's last linear layer.

    The exported graph has their dequantized int32 accumulators as outputs (`bundler.graphs.passes.logits_rounding`). The list
    is empty for a classifier that ends with a convolution.

    Args:
        model: a float, prepared or converted network.
    """
    if isinstance(model, _Detector):
        return [*model.prediction_layers()]
    layers = [item for item in model.modules() if isinstance(item, nn.Conv2d | nn.Linear | WeightedQuantizedModule)]
    return [layer for layer in layers[-1:] if isinstance(layer, nn.Linear | QuantizedLinear)]


def disable_output_fake_quant(prepared: nn.Module) -> None:
    """Disable the fake quantization of the outputs of a model prepared for QAT, in place, as in the exported graph.

    Its observers stay enabled, because `convert` needs a range of every layer.
    """
    for layer in output_layers(prepared):
        if hasattr(layer, "activation_post_process"):
            layer.activation_post_process.disable_fake_quant()  # type: ignore[operator, union-attr]
