"""Fusing of convolution, BatchNorm and ReLU, which differs between PTQ and QAT."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.ao.quantization import fuse_modules as fuse_modules_ptq
from torch.ao.quantization import fuse_modules_qat

from bundler.quantization.batch_norm import QuantizableBatchNormReLU

__all__ = ["fuse_modules"]


def _fuse_batch_norm_relu(_is_qat: bool, norm: nn.BatchNorm2d, relu: nn.ReLU) -> QuantizableBatchNormReLU:
    return QuantizableBatchNormReLU(norm, relu)  # type: ignore[no-untyped-call]


# In addition to torch's own, of which the BatchNorm without a convolution in front cannot be exported once it is converted.
_FUSERS = {"additional_fuser_method_mapping": {(nn.BatchNorm2d, nn.ReLU): _fuse_batch_norm_relu}}


def fuse_modules(model: nn.Module, names: Sequence[str] | Sequence[Sequence[str]], is_qat: bool | None) -> None:
    """Fuse the named children in place.

    PTQ folds the BatchNorm into the convolution and needs the model in eval mode; QAT keeps it, for training.
    `is_qat=None` follows the mode that the model is in, as the specification's `fuse_model` does.
    """
    if is_qat is None:
        is_qat = model.training
    fuse: Callable[..., nn.Module] = fuse_modules_qat if is_qat else fuse_modules_ptq
    groups = [list(names)] if isinstance(names[0], str) else [list(group) for group in names]
    fuse(model, groups, inplace=True, fuse_custom_config_dict=_FUSERS)
