"""The papers say what the manifest says, and are the same from the same manifest."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bundler.files.sha256 import sha256_of
from bundler.manifest import AccuracyRecord, Evidence, Manifest, judge_exactness, read_manifest
from bundler.packaging.documents import write_documents
from bundler.packaging.rendering import markdown
from bundler.targets import find_target

DATA = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def manifest() -> Manifest:
    return read_manifest(DATA)


def written(folder: Path, manifest: Manifest) -> dict[str, str]:
    folder.mkdir()
    (folder / "runner.json").write_text("{}")
    write_documents(folder, manifest, find_target("arm64"), image_reference="mobilenet_v2:arm64-qnnpack")
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_every_paper_is_written_and_covered_by_the_checksums(tmp_path: Path, manifest: Manifest) -> None:
    papers = written(tmp_path / "bundle", manifest)
    assert papers.keys() == {
        *(
            "Dockerfile",
            "README.md",
            "SHA256SUMS",
            "compose.yaml",
            "manifest.json",
            "report.html",
            "requirements.txt",
            "runner.json",
        ),
        "mobilenet_v2-arm64-qnnpack.service",
    }
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=tmp_path / "bundle", check=True)
    assert read_manifest(tmp_path / "bundle") == manifest
    assert papers["requirements.txt"].split() == list(find_target("arm64").runtime.requirements)
    for name, text in papers.items():
        assert not re.search(r"\{\{|\{%|Undefined|\bNone\b", text), name


def test_the_requirements_are_what_was_measured_and_name_what_was_verified(tmp_path: Path, manifest: Manifest) -> None:
    """An exact version may not be made for the device's Python: onnxruntime 1.32.0 is not for Python 3.10."""
    needed = ("1.17", "1.24")
    modes = tuple(
        mode.model_copy(update={"onnx": mode.onnx.model_copy(update={"onnxruntime_minimum": version})})
        for mode, version in zip(manifest.modes, needed, strict=True)
    )
    papers = written(tmp_path / "bundle", manifest.model_copy(update={"modes": modes}))
    lines = papers["requirements.txt"].splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["numpy>=1.22", "onnxruntime>=1.24"]
    assert "onnxruntime==1.32.0" in lines[0]
    assert "needs onnxruntime 1.24 or newer" in papers["README.md"]


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path, manifest: Manifest) -> None:
    for name in ("one", "other"):
        written(tmp_path / name, manifest)
    assert sha256_of(tmp_path / "one" / "SHA256SUMS") == sha256_of(tmp_path / "other" / "SHA256SUMS")


def test_the_readme_shows_the_evidence_and_what_there_is_none_for(tmp_path: Path, manifest: Manifest) -> None:
    readme = written(tmp_path / "bundle", manifest)["README.md"]
    assert "Not supported: failed on cortex-a53" in readme
    assert re.search(r"^\| cortex-a72 \| aarch64 \| passed \| 27\.4 dB \| 2 \|$", readme, re.MULTILINE)
    assert re.search(r"^\| cortex-a76 \| - \| not_run: the container was killed.* \| - \| - \|$", readme, re.MULTILINE)
    assert re.search(r"^\| native \(x86-fbgemm\) \| x86_64 \| same bits \| 27\.4 dB \| \d+ \|$", readme, re.MULTILINE)
    assert "**Bit-exact**: the outputs have the same bits on cortex-a53, cortex-a72, native; not run on cortex-a76." in readme
    assert "INT8 was calibrated with 60 images." in readme
    assert "not trained" not in readme
    assert "--mode int8-ptq image.npy" in readme  # the one that is supported


def not_run(record: Evidence) -> Evidence:
    return Evidence(cpu=record.cpu, verdict="not_run", reason="no container engine")


def only_elsewhere(manifest: Manifest) -> Manifest:
    """Return a manifest whose INT8 ran on no CPU of the target, but on two CPUs of another one."""
    int8 = manifest.modes[1]
    (other,) = int8.fleet
    (executed,) = [item for item in other.evidence if item.outputs_sha256][:1]
    everywhere = tuple(executed.model_copy(update={"cpu": cpu}) for cpu in ("native", "Haswell"))
    fleet = (other.model_copy(update={"evidence": everywhere}),)
    evidence = tuple(map(not_run, int8.evidence))
    exact, reason = judge_exactness(int8.quantization, evidence, fleet)
    changed = int8.model_copy(update={"evidence": evidence, "fleet": fleet, "exact": exact, "exact_reason": reason})
    return manifest.model_copy(update={"modes": (manifest.modes[0], changed)})


def test_the_readme_agrees_with_the_manifest_where_the_target_itself_was_not_executed(
    tmp_path: Path, manifest: Manifest
) -> None:
    changed = only_elsewhere(manifest)
    assert changed.modes[1].exact
    readme = written(tmp_path / "bundle", changed)["README.md"]
    assert "OTHER BITS" not in readme
    assert readme.count("| same bits |") == 2


def test_a_mode_without_any_evidence_is_written(tmp_path: Path, manifest: Manifest) -> None:
    modes = tuple(mode.model_copy(update={"evidence": (), "fleet": ()}) for mode in manifest.modes)
    assert "int8-ptq" in written(tmp_path / "bundle", manifest.model_copy(update={"modes": modes}))["README.md"]


def test_the_readme_warns_of_weights_and_pictures_that_mean_nothing(tmp_path: Path, manifest: Manifest) -> None:
    int8 = manifest.modes[1]
    assert int8.quantization is not None
    assert int8.quantization.calibration is not None
    synthetic = int8.quantization.calibration.model_copy(update={"source": "synthetic"})
    quantization = int8.quantization.model_copy(update={"calibration": synthetic})
    weights = manifest.model.weights.model_copy(update={"trained": False, "source": "random:0"})
    changed = manifest.model_copy(
        update={
            "model": manifest.model.model_copy(update={"weights": weights}),
            "modes": (manifest.modes[0], int8.model_copy(update={"quantization": quantization})),
        }
    )
    readme = written(tmp_path / "bundle", changed)["README.md"]
    assert "**The weights are not trained** (source: random:0)" in readme
    assert "Synthetic images are no substitute" in readme


def test_the_readme_and_the_report_say_why_the_accuracy_is_suspicious(tmp_path: Path, manifest: Manifest) -> None:
    suspicions = ("FP32 top-1 is 25.00% on val: check the preprocessing first", "<b>val</b> | a folder")
    model = manifest.model.model_copy(update={"suspicions": suspicions})
    papers = written(tmp_path / "bundle", manifest.model_copy(update={"model": model}))
    assert f"**The accuracy of these weights is suspicious**: {suspicions[0]}." in papers["README.md"]
    assert "**: &lt;b&gt;val&lt;/b&gt; \\| a folder." in papers["README.md"]
    assert f"suspicious</strong>: {suspicions[0]}.</p>" in papers["report.html"]
    assert "<b>" not in papers["report.html"]
    assert "suspicious" not in written(tmp_path / "plain", manifest)["README.md"]


def test_the_readme_says_what_accuracy_was_measured(tmp_path: Path, manifest: Manifest) -> None:
    accuracy = AccuracyRecord(
        pictures=100,
        data_sha256="0" * 64,
        top1=0.9,
        top1_interval=(0.8, 0.95),
        top5=None,
        drop=0.01,
        drop_interval=(-0.01, 0.03),
    )
    modes = tuple(mode.model_copy(update={"accuracy": accuracy if mode.quantization else None}) for mode in manifest.modes)
    readme = written(tmp_path / "bundle", manifest.model_copy(update={"modes": modes}))["README.md"]
    line = "On 100 images of the build machine: top-1 90.00% (80.0% to 95.0%), +1.00 points lost to FP32 (-1.00 to +3.00)."
    assert readme.count("images of the build machine") == readme.count(line) == 1


def test_the_report_draws_each_layer_and_holds_the_ledger_and_what_was_tried(tmp_path: Path, manifest: Manifest) -> None:
    report = written(tmp_path / "bundle", manifest)["report.html"]
    (mode,) = [mode for mode in manifest.modes if mode.quantization]
    assert mode.quantization is not None
    assert mode.ledger is not None
    drawing = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", report, re.DOTALL)[0])  # noqa: S314  our own
    assert len(drawing.findall("circle")) + len(drawing.findall("g/circle")) == sum(
        layer.output_sqnr_db is not None for layer in mode.quantization.layers
    )
    assert len(drawing.findall("g/rect")) == sum(layer.weight_sqnr_db is not None for layer in mode.quantization.layers)
    for mark in drawing.iter("circle"):
        assert 0 < float(mark.get("cx", "0")) < 960
        assert 0 < float(mark.get("cy", "0")) < 320
    assert "<td>features.0.0</td>" in report
    assert "16375 / 8 / 1" in report
    assert (
        "torch and ONNX Runtime, x86_64: first difference in features.0.0; the same top-1 on 75% of the golden inputs" in report
    )
    assert "all values are equal" in report
    assert re.search(r"<td>entropy-ranges</td><td[^>]*>-0\.30</td><td>no</td>", report)
    assert not re.search(r"(src|href)=", report)  # it needs nothing but itself


def test_names_in_the_report_are_text_and_not_html(tmp_path: Path, manifest: Manifest) -> None:
    weights = manifest.model.weights.model_copy(update={"source": "<script>alert(1)</script>.pth"})
    foreign = manifest.model_copy(update={"model": manifest.model.model_copy(update={"weights": weights})})
    report = written(tmp_path / "bundle", foreign)["report.html"]
    assert "<script>" not in report
    assert "&lt;script&gt;alert(1)" in report


HOSTILE = (
    "\x1b[31m</title></svg><script>alert(1)</script>`x`[a](http://evil) ![i](x) **b** _e_ | cell |\n# head\n"
    '" onload="x" &amp; $x$ @all www.evil.org https://evil.org \u202e\udcff {{ 7 * 7 }} %n'
)


def hostile(value: object, field: str = "") -> object:
    """Return a record's JSON with every string that has no alphabet replaced."""
    if isinstance(value, dict):
        return {(HOSTILE if field == "versions" else key): hostile(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item, field) for item in value]
    return HOSTILE if isinstance(value, str) and field in TEXT_FIELDS else value


TEXT_FIELDS = {
    *("row", "source", "skipped", "step", "detail", "refinements", "layer", "first", "second", "parted", "executions"),
    *("operator", "op_type", "reason", "exact_reason", "machine", "cpu_features", "version", "python", "numpy", "onnxruntime"),
    *("graph_optimization_level", "engine", "qconfig"),
}


@pytest.fixture
def hostile_papers(tmp_path: Path) -> dict[str, str]:
    """The papers of a manifest all of whose free texts are hostile."""
    document = hostile(json.loads((DATA / "manifest.json").read_text()))
    assert isinstance(document, dict)
    document["model"]["row"] = document["model"]["weights"]["source"] = HOSTILE
    for mode in document["modes"]:
        if mode["quantization"]:
            mode["quantization"]["calibration"]["source"] = "pictures"
            for layer in mode["quantization"]["layers"]:
                layer["name"] = HOSTILE
    foreign = Manifest.model_validate(document)
    return written(tmp_path / "bundle", foreign)


def test_no_control_character_of_a_stranger_is_rendered(hostile_papers: dict[str, str]) -> None:
    for name, text in hostile_papers.items():
        if name != "manifest.json":  # JSON escapes them by itself, but for U+202E
            assert all(line.isprintable() for line in text.split("\n")), name
            assert "49" not in re.findall(r"\{\{ 7 \* 7 \}\}|\b49\b", text), name
    assert "\x1b" not in hostile_papers["manifest.json"]
    assert json.loads(hostile_papers["manifest.json"])["model"]["row"] == HOSTILE.replace("\udcff", "\\udcff")


def test_no_markup_of_a_stranger_is_rendered_in_the_readme(
    hostile_papers: dict[str, str], tmp_path: Path, manifest: Manifest
) -> None:
    """It has the lines, tables, links and code that it has without the stranger's texts."""
    readme, plain = hostile_papers["README.md"], written(tmp_path / "plain", manifest)["README.md"]
    assert "<script" not in readme
    assert "http://" not in readme
    assert "https://" not in readme
    assert "www.evil" not in readme
    assert not re.search(r"(?<!\\)(\\\\)*\]\(", readme)
    for mark in ("`", "|", "*", "$", "@", "#"):
        unescaped = rf"(?<!\\)(?:\\\\)*{re.escape(mark)}"
        assert len(re.findall(unescaped, readme)) == len(re.findall(unescaped, plain)), mark
    assert readme.count("\n") == plain.count("\n")


def test_no_markup_of_a_stranger_is_rendered_in_the_report(
    hostile_papers: dict[str, str], tmp_path: Path, manifest: Manifest
) -> None:
    class Tags(HTMLParser):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.found: list[tuple[str, tuple[str, ...]]] = []
            self.feed(text)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, tuple(name for name, _ in attrs)))

    report, plain = hostile_papers["report.html"], written(tmp_path / "plain", manifest)["report.html"]
    assert Tags(report).found == Tags(plain).found
    ElementTree.fromstring(re.findall(r"<svg.*?</svg>", report, re.DOTALL)[0])  # noqa: S314  escaped well


def test_the_other_papers_hold_no_free_text(hostile_papers: dict[str, str], tmp_path: Path, manifest: Manifest) -> None:
    plain = written(tmp_path / "plain", manifest)
    for name in ("Dockerfile", "compose.yaml", "requirements.txt", "mobilenet_v2-arm64-qnnpack.service"):
        assert hostile_papers[name] == plain[name]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SQNR is 41.20 dB; at least 80.00 dB (x86_64)", "SQNR is 41.20 dB; at least 80.00 dB (x86_64)"),
        ("mine_2.pth", "mine_2.pth"),
        ("_mine_.pth", "\\_mine\\_.pth"),
        ("a|b", "a\\|b"),
        ("a\nb", "a\\\\nb"),
        ("<b>", "&lt;b&gt;"),
        ("`x`", "\\`x\\`"),
        ("\\`", "\\\\\\`"),
    ],
)
def test_markdown_is_escaped_where_it_means_something(text: str, shown: str) -> None:
    assert markdown(text) == shown
