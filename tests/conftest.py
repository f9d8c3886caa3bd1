"""What the rooms share: fixed seeds, small pictures, targets, and weights with which a network tells pictures apart."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from xdist.scheduler import LoadScopeScheduling

from bundler.data.calibration_images import synthetic_images
from bundler.data.preprocessing import Preprocessing
from bundler.models.initialization import random_state_dict
from bundler.models.registry import find_model, load_parser
from bundler.targets import TargetProfile, find_target

pytest_plugins = ["tests.command_line", "tests.container_fixtures"]

# The same examples in every run, and no deadline: a shared machine is slow now and then.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

# A process inherits which signals are ignored: Ctrl-C from a shell's background, SIGHUP from nohup. Tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A worker of pytest-xdist shares the machine with others: one thread each is faster than all of them fighting for each core.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


EVERY_VARIANT = "tests/models/test_every_variant.py"


class ByWhatIsShared(LoadScopeScheduling):  # type: ignore[misc]
    """Keep on one worker what shares something, so that it is made once.

    The tests with an engine share it, and some stop it; a variant's tests share its network; the rest is shared within a file.
    """

    def _split_scope(self, nodeid: str) -> str:
        return what_is_shared(nodeid)


def what_is_shared(nodeid: str) -> str:
    path, _, test = nodeid.partition("::")
    if path.startswith("tests/integration/"):
        return "engine"
    if path == EVERY_VARIANT:
        return test.partition("[")[2].rstrip("]").partition("-")[0]
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest and cannot be divided, so that no worker is left with it at the end."""
    first = ("tests/integration/", "tests/pipeline/", "tests/models/test_specification_sequence.py")
    items.sort(key=lambda item: next((index for index, path in enumerate(first) if item.nodeid.startswith(path)), len(first)))


def give_back_memory() -> None:
    """Return to the system what is freed: glibc keeps what networks leave, gigabytes of it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    networks = item.nodeid.startswith(EVERY_VARIANT)  # each of its tests leaves up to a gigabyte
    if networks or nextitem is None or what_is_shared(nextitem.nodeid) != what_is_shared(item.nodeid):
        give_back_memory()


@pytest.fixture(scope="session")
def memory_given_back() -> Callable[[], None]:
    """For what is made anew with each parameter: pytest frees the last one only then."""
    return give_back_memory


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    # pytest-xdist's own groups (--dist=loadgroup) are lost with pytest 9.2: node ids cannot be changed any more.
    return ByWhatIsShared(config, log)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def calibration() -> Tensor:
    """Normalised pictures, float32 [16, 3, 64, 64]."""
    return _pictures(16, seed=1)


@pytest.fixture(scope="session")
def golden() -> Tensor:
    """Others to compare outputs on, float32 [4, 3, 64, 64]."""
    return _pictures(4, seed=2)


def _pictures(count: int, *, seed: int) -> Tensor:
    small = Preprocessing(resize=64, crop=64, interpolation="bilinear")
    return torch.from_numpy(synthetic_images(small, count=count, seed=seed).pictures)


@pytest.fixture(params=["x86", "arm64"], scope="module")
def target(request: pytest.FixtureRequest) -> TargetProfile:
    return find_target(request.param)


@pytest.fixture(scope="session")
def weights_of(calibration: Tensor) -> Callable[[str], Mapping[str, Tensor]]:
    """Return seeded weights of a small variant with 10 classes, made once."""

    @cache
    def make(name: str) -> Mapping[str, Tensor]:
        parser = load_parser(find_model(name)[1])
        return random_state_dict(lambda: parser(num_classes=10), calibration, seed=0)

    return make


@pytest.fixture(scope="session")
def without_options() -> Callable[[TargetProfile], TargetProfile]:
    """Give a target that quantizes as torch's default qconfig of its name does."""

    def remove_options(target: TargetProfile) -> TargetProfile:
        quantization = target.quantization.model_copy(update={"options": ()})
        return target.model_copy(update={"quantization": quantization})

    return remove_options
