"""``table fit``, ``evaluate`` and ``next``: predictors of anything measured on networks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from profiles.errors import UsageError
from tools.device_lab.output import print_json, print_table, progress
from tools.device_lab.running import AsJson

if TYPE_CHECKING:
    from profiles.predictor import Networks, Report

Data = Annotated[
    Path, typer.Option("--data", help="Measured networks, a row each: .csv or .parquet.")
]
ChoiceColumns = Annotated[
    str, typer.Option("--choices", metavar="g0,g1,...", help="Columns of genes; 'g*' for many.")
]
Target = Annotated[
    str, typer.Option("--target", metavar="NAME", help="Column of what was measured, positive.")
]
Group = Annotated[
    str | None,
    typer.Option(
        "--group", metavar="COLUMN", help="Rows of one group are never split; else equal genomes."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn at random.")]


def fit(
    data: Data,
    choices: ChoiceColumns,
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.npz")],
    group: Group = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Learn to predict a measured quantity of networks from their genes; writes a model.

    Example: device-lab table fit --data nets.csv --choices 'g*' --target ms --output ms.npz
    """
    if output.suffix != ".npz":
        raise UsageError(f"--output {output}: a model is a file of suffix .npz")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}")
    networks = _read(data, choices, target, group)
    with progress() as show:
        from profiles import predictor

        fitted = predictor.fit(networks, seed=seed, progress=show)
        predictor.save(fitted, output)
    if as_json:
        print_json(
            {
                "model": str(output),
                "kind": fitted.kind,
                "n_train": len(networks),
                "cross_validated_mape": fitted.errors,
            }
        )
        return
    rows = [[kind, f"{error:.2%}"] for kind, error in fitted.errors.items()]
    print_table(f"{len(networks)} networks, cross-validated", ["model", ">MAPE"], rows)
    print(f"{output}: {fitted.kind}")


def evaluate(
    data: Data,
    choices: ChoiceColumns,
    target: Target,
    train: Annotated[int, typer.Option("--train", min=1, help="Rows to learn from.")],
    group: Group = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Random divisions.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Learn from some measured networks, predict the others, compare with an additive model.

    Example: device-lab table evaluate --data nets.csv --choices 'g*' --target ms --train 600
    """
    networks = _read(data, choices, target, group)
    with progress() as show:
        from profiles import predictor

        report = predictor.evaluate(networks, train, seeds, progress=show)
    if as_json:
        plain = asdict(report)
        print_json({**plain.pop("score"), **plain})
    else:
        _print_report(report)


def choose_next(
    candidates: Annotated[
        Path, typer.Option("--candidates", help="Networks where the search looks, a row each.")
    ],
    count: Annotated[int, typer.Option("--count", min=1, help="How many to choose.")],
    model: Annotated[
        Path | None, typer.Option("--model", metavar="MODEL.npz", help="Of table fit.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Instead: measured networks.")] = None,
    choices: Annotated[str | None, typer.Option("--choices", help="With --data: genes.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="With --data.")] = None,
    toward: Annotated[
        Literal["all", "low", "high"],
        typer.Option("--toward", help="Which values the search is after."),
    ] = "all",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Say which candidates to measure next: those that would tell most of the others.

    Example: device-lab table next --model ms.npz --candidates nets.csv --count 10
    """
    networks = _known(model, data, choices, target)
    from profiles import predictor
    from profiles.predictor.reading import read_choices

    names = networks.choices.names
    rows = read_choices(candidates, names)
    with progress() as show:
        chosen = predictor.choose_next(
            networks, rows, count, toward=toward, seed=seed, progress=show
        ).tolist()
    if as_json:
        print_json(
            [
                {"row": row + 1, "choices": dict(zip(names, rows[row], strict=True))}
                for row in chosen
            ]
        )
        return
    for row in chosen:
        print(f"row {row + 1}: {','.join(str(choice) for choice in rows[row])}")


def _known(
    model: Path | None, data: Path | None, choices: str | None, target: str | None
) -> Networks:
    """The measured networks that a choice rests on."""
    if model is not None and data is None:
        from profiles.predictor import load

        return load(model).training
    if model is None and data is not None and choices and target:
        return _read(data, choices, target, None)
    raise UsageError("give either --model, or --data with --choices and --target")


def _read(data: Path, choices: str, target: str, group: str | None) -> Networks:
    from profiles.predictor.reading import read_networks

    names = [name.strip() for name in choices.split(",") if name.strip()]
    return read_networks(data, names, target, group)


def _print_report(report: Report) -> None:
    def line(name: str, values: tuple[float | None, float | None], form: str) -> list[str]:
        return [name, *("unknown" if value is None else format(value, form) for value in values)]

    forms = {
        "mape": ".3%",
        "mae": ".4g",
        "within_5_percent": ".1%",
        "within_10_percent": ".1%",
        "spearman": ".4f",
        "kendall": ".4f",
        "interval_coverage": ".1%",
        "seconds": ".1f",
    }
    rows = [
        line(name, (getattr(report.score, name), getattr(report.additive, name)), form)
        for name, form in forms.items()
    ]
    chosen = " or ".join(sorted(set(report.kinds)))
    print_table(report.population, ["on unseen networks", f">{chosen}", ">additive"], rows)
