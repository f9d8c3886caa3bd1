"""Entry points of real packages: `.dist-info` folders on the path, as an installer leaves them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from bundler.errors import BrokenModelError, UnknownModelError
from bundler.models.registry import find_model, load_parser, models
from bundler.models.specs import ModelSpec
from bundler.models.user_models import GROUP, BrokenModel, UserModel, user_models

GOOD = "def net(*, weights=None, progress=True, quantize=False, is_qat=False, target=None, **kwargs): return 'built'\n"
SPEC = "from bundler.models.specs import ModelSpec\n"

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package into a folder on the path: its module's text, and its entry points."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module that is written again has the same time stamp

    def write(text: str, entries: Mapping[str, str], *, package: str = "own-nets", module: str = "own_nets") -> None:
        (tmp_path / f"{module}.py").write_text(text)
        folder = tmp_path / f"{package.replace('-', '_')}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (folder / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
        monkeypatch.syspath_prepend(tmp_path)

    yield write
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def only() -> UserModel | BrokenModel:
    (model,) = user_models(taken=())
    return model


def test_without_such_packages_there_is_nothing() -> None:
    assert user_models(taken=()) == []


def test_a_parser_is_a_model_with_its_package_and_the_usual_image(install: Install) -> None:
    install(GOOD, {"my_net": "own_nets:net"})
    spec = ModelSpec(name="my_net", parser="own_nets:net", resize=256, crop=224)
    assert only() == UserModel(name="my_net", package="own-nets 1.2", spec=spec)


def test_a_model_spec_is_followed_but_for_name_and_place(install: Install) -> None:
    fields = "resize=72, crop=64, interpolation='bicubic', mean=(0, 0, 0), std=(1, 1, 1), num_classes=5"
    install(f"{SPEC}{GOOD}net.model_spec = ModelSpec(name='other', parser='os:remove', {fields})\n", {"my_net": "own_nets:net"})
    model = only()
    assert isinstance(model, UserModel)
    assert model.spec == ModelSpec(
        name="my_net",
        parser="own_nets:net",
        resize=72,
        crop=64,
        interpolation="bicubic",
        mean=(0, 0, 0),
        std=(1, 1, 1),
        num_classes=5,
    )


def test_a_parser_may_be_an_attribute_of_something(install: Install) -> None:
    text = f"class Zoo:\n    @staticmethod\n    {GOOD}"
    install(text, {"my_net": "own_nets:Zoo.net"})
    _, spec = find_model("my_net")
    assert spec.parser == "own_nets:Zoo.net"
    assert load_parser(spec)() == "built"


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        (GOOD.replace("*, ", ""), "own_nets:net", "does not take weights, progress, quantize, is_qat, target as keyword-only"),
        (GOOD.replace(" is_qat=False,", ""), "own_nets:net", "does not take is_qat as keyword-only"),
        (GOOD.replace("*, weights=None,", "weights=None, *,"), "own_nets:net", "does not take weights as keyword-only"),
        (GOOD.replace(", **kwargs", ""), "own_nets:net", "does not take **kwargs"),
        (GOOD.replace("*, ", "size, *, "), "own_nets:net", "cannot be called without size"),
        (GOOD.replace("quantize=False", "quantize"), "own_nets:net", "cannot be called without quantize"),
        ("net = 3\n", "own_nets:net", "TypeError: 3 is not a callable object"),
        (GOOD, "own_nets", "TypeError: <module 'own_nets'"),
        (GOOD, "own_nets:not_there", "AttributeError: module 'own_nets' has no attribute 'not_there'"),
        (GOOD, "not_there:net", "ModuleNotFoundError: No module named 'not_there'"),
        (GOOD, "own-nets:net", "own-nets:net is not of the form package.module:function"),
        ("import sys\nsys.exit('no licence')\n", "own_nets:net", "SystemExit: no licence"),
        ("raise RuntimeError('too old\\nfor this machine')\n", "own_nets:net", "RuntimeError: too old for this machine)"),
        ("def net(:\n", "own_nets:net", "SyntaxError: "),
        (f"{GOOD}net.model_spec = {{'crop': 64}}\n", "own_nets:net", "model_spec of own_nets:net is not a ModelSpec"),
    ],
    ids=[
        *("positional", "without is_qat", "one positional", "no kwargs", "one more", "no default", "no callable"),
        *("module only", "no such attribute", "no such module", "malformed", "exits", "raises", "syntax", "other spec"),
    ],
)
def test_what_cannot_be_used_is_told_with_the_reason_in_one_line(install: Install, text: str, value: str, reason: str) -> None:
    install(text, {"my_net": value})
    model = only()
    assert isinstance(model, BrokenModel)
    assert (model.name, model.package) == ("my_net", "own-nets 1.2")
    assert value in model.reason
    assert reason in model.reason
    assert "\n" not in model.reason
    with pytest.raises(BrokenModelError) as refusal:
        find_model("my_net")
    assert refusal.value.message == f"my_net of own-nets 1.2 cannot be used: {model.reason}"
    assert refusal.value.exit_code == 4


def test_a_broken_one_does_not_take_the_others_down(install: Install) -> None:
    install("raise RuntimeError\n", {"broken": "broken_nets:net"}, package="broken-nets", module="broken_nets")
    install(GOOD, {"a_net": "own_nets:net", "z_net": "own_nets:net", "half": "own_nets:nothing"})
    found = {model.name: type(model) for model in user_models(taken=())}
    assert found == {"a_net": UserModel, "broken": BrokenModel, "half": BrokenModel, "z_net": UserModel}
    assert find_model("z_net")[1].parser == "own_nets:net"


def test_a_name_of_the_scope_table_is_not_to_be_had(install: Install) -> None:
    install(GOOD, {"resnet18": "own_nets:net"})
    (model,) = user_models(taken=models())
    assert model == BrokenModel(name="resnet18", package="own-nets 1.2", reason="the name resnet18 is already in use")
    assert find_model("resnet18") == models()["resnet18"]
    assert "own_nets" not in sys.modules


@pytest.mark.parametrize("name", ["MyNet", "my net", "../my_net", "my/net", "_net", "my_net-"])
def test_a_name_that_is_no_folder_and_no_image_is_refused(install: Install, name: str) -> None:
    install(GOOD, {name: "own_nets:net"})
    model = only()
    assert isinstance(model, BrokenModel)
    assert f"{name!r} is not a valid image name" in model.reason


def test_a_name_may_not_be_long_nor_hold_control_characters(install: Install) -> None:
    install(GOOD, {"a" * 101: "own_nets:net", "\x1b[31mred": "own_nets:net"})
    for model in user_models(taken=()):
        assert isinstance(model, BrokenModel)
        assert "is not a valid image name" in model.reason
        assert model.reason.isprintable()


@pytest.mark.parametrize("text", ["just a line\n", "= own_nets:net\n"])
def test_entry_points_that_cannot_be_read_do_not_take_the_others_down(install: Install, tmp_path: Path, text: str) -> None:
    install(GOOD, {"my_net": "own_nets:net"})
    (tmp_path / "bad-1.dist-info").mkdir()
    (tmp_path / "bad-1.dist-info" / "entry_points.txt").write_text(f"[{GROUP}]\n{text}")
    found = {type(model): model for model in user_models(taken=())}
    assert found[UserModel].name == "my_net"
    assert found[BrokenModel].package == "an unnamed package"


def test_entry_points_in_another_encoding_do_not_take_the_others_down(install: Install, tmp_path: Path) -> None:
    install(GOOD, {"my_net": "own_nets:net"})
    (tmp_path / "bad-1.dist-info").mkdir()
    (tmp_path / "bad-1.dist-info" / "entry_points.txt").write_bytes(b"\xff\xfe")
    names = {type(model): model.name for model in user_models(taken=())}
    assert names == {UserModel: "my_net", BrokenModel: "every model"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class Own(BaseException): pass\nraise Own('no')\n", "Own: no"),
        ("class Own(Exception):\n    def __str__(self): raise RuntimeError\nraise Own\n", "(Own: )"),
    ],
)
def test_an_exception_of_its_own_is_named(install: Install, text: str, reason: str) -> None:
    install(text, {"my_net": "own_nets:net"})
    model = only()
    assert isinstance(model, BrokenModel)
    assert reason in model.reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("resize='x', crop=64", "resize is 'x', not an integer"),
        ("resize=64, crop=10**9", "crop is 1000000000, not an integer from 1 to 8192"),
        ("resize=64, crop=64, num_classes=-1", "num_classes is -1"),
        ("resize=64, crop=64, interpolation='\\x1b[31m'", "interpolation is '\\x1b[31m', not nearest or box or bilinear"),
        ("resize=64, crop=64, task='segmentation'", "task is 'segmentation'"),
        ("resize=64, crop=64, mean=(0, 0)", "mean is (0, 0), not three numbers"),
        ("resize=64, crop=64, std=(1, 0, 1)", "std contains 0"),
        ("resize=64, crop=64, std=(1, float('nan'), 1)", "not three numbers"),
    ],
)
def test_a_model_spec_with_a_wrong_field_is_refused(install: Install, fields: str, reason: str) -> None:
    install(f"{SPEC}{GOOD}net.model_spec = ModelSpec(name='x', parser='x:y', {fields})\n", {"my_net": "own_nets:net"})
    model = only()
    assert isinstance(model, BrokenModel)
    assert reason in model.reason


def test_of_two_with_the_same_name_the_first_is_used(install: Install) -> None:
    install(GOOD, {"my_net": "b_nets:net"}, package="b-nets", module="b_nets")
    install(GOOD, {"my_net": "a_nets:net"}, package="a-nets", module="a_nets")
    first, second = user_models(taken=())
    assert isinstance(first, UserModel)
    assert first.package == "a-nets 1.2"
    assert second == BrokenModel(name="my_net", package="b-nets 1.2", reason="the name my_net is already in use")
    row, spec = find_model("my_net")
    assert (row.name, spec) == ("a-nets 1.2", first.spec)


def test_of_two_with_the_same_name_the_broken_one_does_not_take_it(install: Install) -> None:
    install(GOOD, {"my_net": "b_nets:net"}, package="b-nets", module="b_nets")
    install("raise RuntimeError\n", {"my_net": "a_nets:net"}, package="a-nets", module="a_nets")
    first, second = user_models(taken=())
    assert isinstance(first, BrokenModel)
    assert isinstance(second, UserModel)
    assert find_model("my_net")[0].name == "b-nets 1.2"


def test_find_model_gives_a_row_by_itself_and_load_parser_the_function(install: Install) -> None:
    install(GOOD, {"my_net": "own_nets:net"})
    row, spec = find_model("my_net")
    assert (row.name, row.variants) == ("own-nets 1.2", (spec,))
    assert spec.modes == ("fp32", "int8-ptq", "int8-qat")
    assert load_parser(spec) is sys.modules["own_nets"].net


@pytest.mark.parametrize("typed", ["mynet", "My-Net", "my_nett"])
def test_a_misspelt_name_suggests_it(install: Install, typed: str) -> None:
    install(GOOD, {"my_net": "own_nets:net"})
    with pytest.raises(UnknownModelError) as refusal:
        find_model(typed)
    assert "my_net" in refusal.value.next_step


def test_the_scope_table_is_found_without_importing_an_entry_point(install: Install) -> None:
    install(GOOD, {"my_net": "own_nets:net"})
    for name, found in models().items():
        assert find_model(name) == found
    assert "own_nets" not in sys.modules
    find_model("my_net")
    assert "own_nets" in sys.modules


def test_what_a_package_prints_when_it_is_imported_stays_out_of_the_result(install: Install, tmp_path: Path) -> None:
    install(f"print('welcome')\n{GOOD}", {"my_net": "own_nets:net"})
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from bundler.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code, "models", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)[-1]["name"] == "my_net"
    assert "welcome" in run.stderr
