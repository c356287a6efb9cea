"""``bundle``: what a mobile app loads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from profiles import units
from profiles.errors import UsageError
from tools.device_lab.output import WIDTH, print_json, print_table, progress
from tools.device_lab.running import AsJson, WorkspaceFolder

if TYPE_CHECKING:
    from pipeline.bundle.manifest import BundledChoice, DeviceClass, Manifest

app = typer.Typer(help="Signed bundles of artifacts, for apps.", no_args_is_help=True)


@app.command()
def make(
    output: Annotated[Path, typer.Option("--output", "-o", help="The zip to write.")],
    workspace: WorkspaceFolder = Path("workspace"),
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", help="Such as 'latency<=8ms on pixel-8'; repeatable."),
    ] = None,
    best: Annotated[
        Literal["accuracy", "latency", "size", "energy"],
        typer.Option("--best", help="What is best among what keeps all limits."),
    ] = "accuracy",
    artifacts: Annotated[
        list[str] | None,
        typer.Option("--artifact", help="Only this: SHA256 or variant:format; repeatable."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="Sign with this key; default is your own.")
    ] = None,
    not_after: Annotated[
        str | None, typer.Option("--not-after", help="Loaders refuse it after this date (UTC).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose artifacts for each device, and write them as a signed bundle.

    Without limits: of each runtime the most accurate artifact on each device; of equals the
    fastest, then the smallest. With limits on a device, the bundle is for those devices alone.
    A limit on latency or energy holds where the whole 95 % interval keeps it.

    Example: device-lab bundle make --workspace work --output app.zip --limit 'size<=5MB'
    """
    with progress() as show:
        show("bundle ...")
        from pipeline.bundle.choosing import Wish, parse_limits
        from pipeline.bundle.making import make_bundle
        from pipeline.bundle.signing import moment, signing_key

        wish = Wish(parse_limits(limits or []), best, tuple(artifacts or ()))
        signing = signing_key(key)
        if not_after is not None:
            try:
                until = moment(not_after)
            except ValueError as error:
                raise UsageError(f"--not-after: {error}") from None
            signing = signing.until(until)
        manifest = make_bundle(workspace, output, wish, signing)
    sha256 = hashlib.sha256(output.read_bytes()).hexdigest()
    if as_json:
        print_json({"bundle": str(output), "sha256": sha256, **manifest.model_dump(mode="json")})
        return
    _print_manifest(manifest)
    print(f"bundle: {output}\nsha256: {sha256}\npublic key: {signing.public_key}")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="FILE.zip", help="A bundle.")],
    public_key: Annotated[
        str | None,
        typer.Option("--public-key", help="Of its maker: base64 or a file; default is your own."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See that a bundle is whole, signed by a key that is trusted, and not expired.

    Example: device-lab bundle verify app.zip --public-key maker.pub
    """
    from pipeline.bundle.loading import load_bundle
    from pipeline.bundle.signing import public_key as key_of

    _, manifest = load_bundle(bundle, [key_of(public_key)])
    if as_json:
        print_json({"bundle": str(bundle), "verified": True, **manifest.model_dump(mode="json")})
        return
    _print_manifest(manifest)
    until = manifest.signer.not_after or "no end"
    print(f"{bundle} is whole, and signed by {manifest.signer.public_key} (valid until {until})")


@app.command()
def key(
    key: Annotated[
        Path | None, typer.Option("--key", help="Of this key; default is your own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the public key that apps trust; your own is made where there is none.

    Example: device-lab bundle key > maker.pub
    """
    from pipeline.bundle.signing import signing_key

    found = signing_key(key)
    known = {"public_key": found.public_key, "not_after": found.not_after}
    print_json(known) if as_json else print(found.public_key)


def _print_manifest(manifest: Manifest) -> None:
    """What each device runs first, second..."""
    rows = [
        [*_device_cells(group), *_cells(manifest, choice)]
        for group in manifest.devices
        for choice in group.choices
    ]
    print_table(
        f"{manifest.name}: best {manifest.chosen_by.best} first",
        ["device", "variant", "format", ">thr", ">ms", ">95 %", ">n", ">kB", ">top-1"],
        rows,
        width=WIDTH,
    )


def _device_cells(group: DeviceClass) -> list[str]:
    measured = [choice.evidence for choice in group.choices if choice.evidence]
    if not measured:
        return ["any other"]
    return [measured[0].device + (" (emulated)" if measured[0].emulated else "")]


def _cells(manifest: Manifest, choice: BundledChoice) -> list[str]:
    artifact = next(each for each in manifest.artifacts if each.sha256 == choice.artifact)
    latency = choice.evidence.latency_ns if choice.evidence else None
    return [
        artifact.variant,
        artifact.format,
        str(choice.threads or "-"),
        units.format_ms(latency.value if latency else None),
        units.format_half_width(latency.value, latency.ci95) if latency else "-",
        str(latency.n) if latency else "-",
        f"{artifact.size_bytes / 1000:.0f}",
        f"{100 * artifact.parity.accuracy:.1f}",
    ]
