"""Target profiles: lookup by name, alias and path; rejection of missing, unknown, renamed and out-of-range values."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from bundler.errors import TargetProfileError, UnknownTargetError
from bundler.manifest import read_manifest
from bundler.resources import resource
from bundler.targets import find_target, load_target, load_targets

TEXT = resource("targets", "x86-fbgemm.toml").read_text(encoding="utf-8")
KEYS = re.findall(r"^(\w+) = ", TEXT, re.MULTILINE)


def test_a_target_is_found_by_name_and_alias() -> None:
    targets = load_targets()
    assert [target.name for target in targets] == ["arm64-qnnpack", "x86-fbgemm"]
    for target in targets:
        for name in (target.name, *target.aliases, target.name.upper()):
            assert find_target(name) == target


def test_a_target_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace('name = "x86-fbgemm"', 'name = "mine"', 1))
    assert find_target(str(path)).name == "mine"


@pytest.mark.parametrize("key", sorted(set(KEYS)))
def test_every_key_is_required(tmp_path: Path, key: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(re.sub(rf"^{key} = (?:\[\n(?: .*\n)*\]|.*)\n", "", TEXT, count=1, flags=re.MULTILINE))
    with pytest.raises(TargetProfileError, match=rf"{key}: Field required"):
        load_target(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('platform = "linux/amd64"', 'platform = "linux/sparc"', "platform"),
        ("opset = 13", "opset = 12", r"export\.opset"),
        ("opset = 13", "opset = 13\nspeed = 1", r"export\.speed: Extra inputs"),
        ('user = "10001:10001"', 'user = "0:0"', r"image\.user"),
        ('"numpy==2.4.6"', '"numpy>=2"', r"runtime\.requirements"),
        ('emulator_minimum = "10.0"', 'emulator_minimum = "new"', "emulator_minimum"),
        ("[quantization]", "[quantization", "Expected"),
    ],
)
def test_an_invalid_value_is_rejected_with_its_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in TEXT
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(TargetProfileError, match=words):
        load_target(path)


# The [quantization] table and the key of [verification] as they were named in version 0.1.
OLD_QUANTIZATION = """[quantization]
engine = "fbgemm"
qconfig = "fbgemm"
refinements = ["per-channel-weights", "saturation-free-weights", "equalized-channels", "compensated-rounding"]
recovery = ["more-pictures", "corrected-biases", "float-layers"]

"""


def test_every_renamed_key_and_value_of_an_old_profile_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = re.sub(r"^\[quantization\].*?(?=^\[export\])", OLD_QUANTIZATION, TEXT, flags=re.DOTALL | re.MULTILINE)
    path.write_text(text.replace("also_verify_on = ", "fleet = "))
    with pytest.raises(TargetProfileError) as caught:
        load_target(path)
    message = caught.value.message
    assert str(path) in message
    assert [part.strip() for part in message.partition(": ")[2].split(";")] == [
        "quantization.refinements was renamed to quantization.options",
        "quantization.recovery was renamed to quantization.fallback",
        "verification.fleet was renamed to verification.also_verify_on",
        'quantization.refinements: "equalized-channels" was renamed to "cross-layer-equalization"',
        'quantization.refinements: "compensated-rounding" was renamed to "gptq"',
        'quantization.recovery: "more-pictures" was renamed to "more-calibration-images"',
        'quantization.recovery: "corrected-biases" was renamed to "bias-correction"',
        'quantization.recovery: "float-layers" was renamed to "mixed-precision"',
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('    "gptq", ', '    "compensated-rounding", ', 'quantization.options: "compensated-rounding" was renamed to "gptq"'),
        (
            '    "mixed-precision", ',
            '    "float-layers", ',
            'quantization.fallback: "float-layers" was renamed to "mixed-precision"',
        ),
        ("[verification]\n", "[verification]\nfleet = []\n", "verification.fleet was renamed to verification.also_verify_on"),
    ],
)
def test_one_old_name_in_a_new_profile_is_reported(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in TEXT
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(TargetProfileError, match=re.escape(words)):
        load_target(path)


@pytest.mark.parametrize(
    "content", ["quantization = 1", "quantization = []", "verification = 'x'", "[quantization]\noptions = 'gptq'"]
)
def test_a_profile_with_other_types_is_rejected_by_validation(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(TargetProfileError, match="Field required"):
        load_target(path)


def test_a_manifest_with_the_option_names_of_an_older_version_is_readable(tmp_path: Path) -> None:
    document = json.loads((Path(__file__).parent / "fixtures" / "manifest.json").read_text(encoding="utf-8"))
    quantization = next(mode["quantization"] for mode in document["modes"] if mode["quantization"])
    quantization["refinements"] = ["equalized-channels", "compensated-rounding", "corrected-biases"]
    quantization["recovery"][0]["step"] = "float-layers"
    (tmp_path / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    record = next(mode.quantization for mode in read_manifest(tmp_path).modes if mode.quantization)
    assert record.refinements == ("equalized-channels", "compensated-rounding", "corrected-biases")
    assert record.recovery[0].step == "float-layers"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ('"gptq"', "gptq requires per-channel-weights and saturation-free-weights"),
        ('"mse-ranges", "minmax-ranges"', r"only one of the range options can be used \(got mse-ranges, minmax-ranges\)"),
    ],
)
def test_options_that_do_not_fit_together_are_rejected(tmp_path: Path, options: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(re.sub(r"^options = \[.*?^\]$", f"options = [{options}]", TEXT, flags=re.DOTALL | re.MULTILINE))
    with pytest.raises(TargetProfileError, match=words):
        load_target(path)


def test_adding_an_option_adds_what_it_requires_and_replaces_the_range_option() -> None:
    profile = find_target("x86").quantization.model_copy(update={"options": ("mse-ranges",)})
    assert profile.with_option("gptq").options == ("mse-ranges", "per-channel-weights", "saturation-free-weights", "gptq")
    assert profile.with_option("entropy-ranges").options == ("entropy-ranges",)
    assert profile.options == ("mse-ranges",)


def test_an_unknown_name_suggests_the_most_similar_one() -> None:
    with pytest.raises(UnknownTargetError) as caught:
        find_target("arm-64")
    assert "Did you mean arm64" in caught.value.next_step


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TargetProfileError, match="No such file"):
        find_target(str(tmp_path / "nothing.toml"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('suite = "bookworm"', 'suite = "--setup-hook=touch X"', r"image\.suite"),
        ('suite = "bookworm"', 'suite = "bookworm; touch X"', r"image\.suite"),
        ('"zlib1g"', '"--setup-hook=touch X"', r"image\.packages\.4"),
        ('"zlib1g"', '"zlib1g,evil"', r"image\.packages\.4"),
        ('"zlib1g"', '"?narrow(?archive(x))"', r"image\.packages\.4"),
        ('user = "10001:10001"', 'user = "10001:10001\\n"', r"image\.user"),
        ('user = "10001:10001"', 'user = "1\u0660:1"', r"image\.user"),
        ('"numpy==2.4.6"', '"--index-url=http://evil/==1"', r"runtime\.requirements\.0"),
        ('"numpy==2.4.6"', '"numpy==2.4.6 @ http://evil"', r"runtime\.requirements\.0"),
        ('"numpy==2.4.6"', '"numpy==2.4.6\\nevil==1"', r"runtime\.requirements\.0"),
        ('"manylinux_2_28_x86_64"', '"../x"', r"runtime\.wheel_platforms\.0"),
        ('python = "3.11"', 'python = "3.1\u0661"', r"runtime\.python"),
        ('name = "Haswell"', 'name = "-plugin"', r"verification\.cpus\.1\.name"),
        ('name = "Haswell"', 'name = "Haswell /bin/sh"', r"verification\.cpus\.1\.name"),
        ('present = ["SSE42"]', 'present = ["SSE42\\u001b[31m"]', r"verification\.cpus\.2\.present\.0"),
        ('summary = "64-bit', 'summary = "\\u001b[31m64-bit', "summary: .*control characters"),
        ('summary = "64-bit', 'summary = "\\u202e64-bit', "summary: .*control characters"),
        ('name = "x86-fbgemm"', 'name = "../x86"', "name"),
        ('name = "x86-fbgemm"', f'name = "{"x" * 65}"', "name"),
        ("timeout_seconds = 1800", "timeout_seconds = 999999999999", "timeout_seconds"),
        ("memory_mib = 4096", "memory_mib = 999999999", "memory_mib"),
        ("golden_inputs = 4", "golden_inputs = 1000000", "golden_inputs"),
        ("sqnr_loss_db = 1.0", "sqnr_loss_db = inf", "sqnr_loss_db"),
        ("fp32_min_sqnr_db = 80.0 ", "fp32_min_sqnr_db = nan ", "fp32_min_sqnr_db"),
        ('emulator_minimum = "10.0"', 'emulator_minimum = "10.0\\u001b[31m"', "emulator_minimum"),
        ('also_verify_on = ["arm64-qnnpack"]', 'also_verify_on = ["/etc/x.toml"]', r"verification\.also_verify_on\.0"),
        ('engine = "fbgemm"', "engine = 1979-05-27", r"quantization\.engine"),
        ("opset = 13", "opset = " + "9" * 5000, "digit"),
    ],
)  # fmt: skip
def test_every_value_is_restricted_in_characters_and_size(tmp_path: Path, old: str, new: str, words: str) -> None:
    """The values become arguments of mmdebstrap, pip, QEMU and the container engine."""
    assert old in TEXT
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(TargetProfileError, match=words):
        load_target(path)


def test_a_fifo_a_device_a_folder_and_a_large_file_are_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.toml")
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(2**33)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"summary = '\xe9'")
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    for name, words in {
        "fifo.toml": "it is a FIFO, not a regular file",
        "large.toml": "larger than 262,144 bytes",
        "folder.toml": "it is a folder, not a regular file",
        "latin.toml": r"not UTF-8 \(byte 11\)",
        "deep.toml": "nested too deeply",
    }.items():
        with pytest.raises(TargetProfileError, match=words):
            find_target(str(tmp_path / name))
    with pytest.raises(TargetProfileError, match="it is a character device"):
        find_target("/dev/zero")


def test_a_symbolic_link_to_a_profile_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TEXT)
    (tmp_path / "link.toml").symlink_to("mine.toml")
    assert find_target(str(tmp_path / "link.toml")) == find_target(str(tmp_path / "mine.toml"))
