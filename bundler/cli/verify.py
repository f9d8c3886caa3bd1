"""`bundler verify`: verify bundles again, from their own files."""

from __future__ import annotations

from pathlib import Path

import click

from bundler import console
from bundler.cli.comparison_table import print_comparisons
from bundler.cli.failures import INCOMPLETE
from bundler.cli.output_option import output_option
from bundler.errors import VerificationFailedError
from bundler.pipeline.verify_bundle import Verification, VerifyOptions, find_bundles, verify_bundle
from bundler.targets import find_target

__all__ = ["command"]


@click.command("verify")
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="TARGET", help="Name, alias, or path of a target profile (`bundler targets`).")
@output_option("Directory of bundles, searched if no BUNDLES are given.")
@click.option("--base-image", metavar="IMAGE", help="What the device image begins with, for bundles that were built on one.")
@click.option("--trust-bundle", is_flag=True, help="Without an engine, execute another version's device program on this host.")
@click.option("--explain", is_flag=True, help="Compare torch and ONNX Runtime, tensor by tensor, here and on arm64.")
@click.option("--json", "as_json", is_flag=True, help="Print the evidence as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    bundles: tuple[Path, ...],
    target: str,
    output: Path,
    base_image: str | None,
    trust_bundle: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """Verify existing bundles again on the CPUs of a target.

    Without BUNDLES, every bundle of the target below --output is verified.

    Every file is compared with the bundle's checksums, and the device program is executed on each CPU of the profile. Evidence
    that adds to the bundle's record or contradicts it is written into the bundle; what could not be executed replaces nothing.

    The device program is executed in a container without a network. Without an engine it is executed on this host, if it is
    the one that this version of bundler writes, or with --trust-bundle.

    \b
    Examples:
      bundler verify --target x86
      bundler verify --target x86 --explain dist/x86-fbgemm/mobilenet_v2
      bundler verify --target arm64 dist/arm64-qnnpack/mobilenet_v2
    """
    profile = find_target(target)
    options = VerifyOptions(base_image=base_image, trust_bundle=trust_bundle, explain=explain)
    verifications = [verify_bundle(bundle, profile, options) for bundle in bundles or find_bundles(output, profile)]
    if as_json:
        console.json_result([_document(verification) for verification in verifications])
    else:
        _print(verifications)
        if explain:
            for verification in verifications:
                print_comparisons(verification.manifest)
    failed = [str(verification.directory) for verification in verifications if verification.verdict == "failed"]
    if failed:
        raise VerificationFailedError(
            f"verification failed: {', '.join(failed)}",
            next_step="Do not deploy it. The table above and its manifest state what failed.",
        )
    if any(verification.verdict == "not_run" for verification in verifications):
        console.warn("INCOMPLETE: not every CPU of the target could be run on this machine (exit code 3)")
        ctx.exit(INCOMPLETE)


def _document(verification: Verification) -> dict[str, object]:
    return {
        "bundle": str(verification.directory),
        "verdict": verification.verdict,
        "manifest_rewritten": verification.rewritten,
        "contradicted": [str(item) for item in verification.contradictions],
        "evidence": {
            mode: [item.model_dump(mode="json") for item in items] for mode, items in sorted(verification.evidence.items())
        },
        "fleet": {
            mode: [record.model_dump(mode="json") for record in records] for mode, records in sorted(verification.fleet.items())
        },
        "ledger": {
            mode.name: mode.ledger.model_dump(mode="json") for mode in verification.manifest.modes if mode.ledger is not None
        },
        "exact": {mode.name: mode.exact for mode in verification.manifest.modes},
    }


def _print(verifications: list[Verification]) -> None:
    rows = [
        (
            str(verification.directory),
            mode,
            item.cpu,
            item.verdict,
            "-" if item.sqnr_db is None else f"{item.sqnr_db:.1f}",
            "-" if item.max_steps is None else str(item.max_steps),
            (item.outputs_sha256 or "-")[:12],
            item.reason,
        )
        for verification in verifications
        for mode, items in sorted(verification.evidence.items())
        for item in (*items, *(item for record in verification.fleet.get(mode, ()) for item in record.evidence))
    ]
    console.table(("bundle", "mode", "cpu", "verdict", "SQNR dB", "max error", "outputs", "reason"), rows)
