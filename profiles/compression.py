"""What a recipe says about compression: methods, their settings, and how they follow each other.

Each method is a variant of its own: ``from`` names the variant that it starts from, so a chain of
them is a chain of rows in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from profiles.config import Config
from profiles.measure import Count
from profiles.records import ArtifactFormat

Fraction = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Training(Config):
    """How to train a classifier on the train split (AdamW, one cycle, cross-entropy).

    Args:
        epochs, batch_size, learning_rate, weight_decay: of the optimiser; the learning rate is the
            peak of the cycle.
        flip: mirror each image with a chance of one half.
        crop: shift each image by up to so many pixels, with zeros around it.
        seed: of the order of examples and of what is random in them.
        threads: PyTorch's.  Sums depend on their number, so it is part of what makes a training
            repeatable; more than one pays for large networks on an idle machine only.
    """

    epochs: Count = 10
    batch_size: Count = 64
    learning_rate: Annotated[float, Field(gt=0)] = 0.003
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    flip: bool = False
    crop: Annotated[int, Field(ge=0)] = 0
    seed: int = 0
    threads: Count = 1


class Distil(Config):
    """Learn from another model's outputs too, the uncompressed one's, in any fine-tuning.

    Args:
        loss: ``kl`` (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015), or
            ``bd-kd``: forward and reverse KL, balanced for each example (BD-KD, 2023).
        temperature: that softens both outputs.
        weight: of this loss beside cross-entropy's ``1 - weight``.
        features: weight of the mean squared error between both models' features.
        at: modules whose outputs are those features, paths in the exported module.
        teacher: a variant that this one came of, to learn from instead: one that was trained on.
    """

    loss: Literal["kl", "bd-kd"] = "kl"
    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    features: Annotated[float, Field(ge=0)] = 0.0
    at: tuple[str, ...] = ()
    teacher: Name | None = None

    @model_validator(mode="after")
    def _features_somewhere(self) -> Distil:
        if bool(self.features) != bool(self.at):
            raise ValueError("features (a weight) and at (which modules) go together")
        return self


class Budget(Config):
    """What may remain of a network, as a share of what the method begins with: one cost.

    Args:
        macs, parameters: counted.
        latency, energy: measured on ``device`` (the recipe's first where none is named) with
            ``format``'s runtime.
        device, format: see there.
    """

    macs: Fraction | None = None
    parameters: Fraction | None = None
    latency: Fraction | None = None
    energy: Fraction | None = None
    device: str | None = None
    format: ArtifactFormat | None = None

    @model_validator(mode="after")
    def _one_cost(self) -> Budget:
        if len(self._costs()) != 1:
            raise ValueError("name exactly one of macs, parameters, latency and energy")
        if not self.is_measured and (self.device or self.format):
            raise ValueError(f"{self.cost} is counted: no device, no format")
        return self

    def _costs(self) -> list[str]:
        names = ("macs", "parameters", "latency", "energy")
        return [name for name in names if getattr(self, name) is not None]

    @property
    def cost(self) -> str:
        """Which cost: ``macs``, ``parameters``, ``latency`` or ``energy``."""
        return self._costs()[0]

    @property
    def share(self) -> float:
        """What may remain of it."""
        return float(getattr(self, self.cost))

    @property
    def is_measured(self) -> bool:
        """Whether a device decides."""
        return self.cost in ("latency", "energy")


class Method(Config):
    """One compressed version of the model.

    Args:
        name: in every row of results.
        after: the variant that it starts from (``from`` in a recipe); the model itself where none
            is named.
    """

    name: Name
    after: Annotated[
        str | None,
        Field(validation_alias=AliasChoices("from", "after"), serialization_alias="from"),
    ] = None

    @model_validator(mode="after")
    def _distils_while_training(self) -> Method:
        if getattr(self, "distil", None) and getattr(self, "train", None) is None:
            raise ValueError("distil is a part of training: name train")
        return self


class Fp32(Method):
    """The model as it is."""

    method: Literal["fp32"] = "fp32"

    @model_validator(mode="after")
    def _first(self) -> Fp32:
        if self.after:
            raise ValueError("fp32 is the model itself: it has no from")
        return self


class Tuned(Method):
    """Further training that changes no shape: the fair reference of methods that fine-tune."""

    method: Literal["finetune"]
    train: Training = Training()
    distil: Distil | None = None


class Int8(Method):
    """Weights and activations in INT8.

    Args:
        precision: ``everywhere`` the runtime has kernels, or where the device ``measured`` them to
            be faster.
        keep: modules to leave in FP32: patterns of paths in the exported module.
        max_drop: largest loss of accuracy, as a fraction; what is most sensitive goes back to FP32.
        smooth: strength of SmoothQuant, from 0 to 1.
        train, distil: train with rounding in the forward pass (QAT) before.
    """

    method: Literal["int8"]
    precision: Literal["everywhere", "measured"] = "everywhere"
    keep: tuple[str, ...] = ()
    max_drop: Fraction | None = None
    smooth: Fraction | None = None
    train: Training | None = None
    distil: Distil | None = None


class Weights(Method):
    """Weights alone in INT8 or INT4: smaller files of transformers.

    Args:
        bits: of a weight.
        group_size: how many weights share a scale; a whole channel where none is given.
        symmetric: without zero points.
    """

    method: Literal["weight-only"]
    bits: Literal[8, 4] = 8
    group_size: Annotated[int, Field(ge=16)] | None = None
    symmetric: bool = True


class Sparse(Method):
    """Single weights set to zero: serves size and sparse kernels, no dense kernel.

    Args:
        sparsity: share of the weights that are set to zero.
        scope: rank weights in each layer (``local``), in the whole model (``global``), by
            ``regularised`` training (NNCF's), or by ``layer-adaptive`` allocation.
        schedule: ``one-shot``, or in training: ``gradual`` (cubic) or ``cyclical``.
        cycles: of ``cyclical``.
        pattern: ``N:M``: of M neighbouring input channels' weights at most N stay.  With ``train``
            masks adapt while the model learns; with ``distil`` too, that is AST.
        train, distil: fine-tuning, during which schedules run; in the last quarter of it masks
            stay as they are.
    """

    method: Literal["sparse"]
    sparsity: Fraction | None = None
    scope: Literal["global", "local", "regularised", "layer-adaptive"] = "global"
    schedule: Literal["one-shot", "gradual", "cyclical"] = "one-shot"
    cycles: Count = 3
    pattern: Annotated[str, Field(pattern=r"^[1-9]\d?:[1-9]\d?$")] | None = None
    train: Training | None = None
    distil: Distil | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Sparse:
        if self.pattern:
            kept, of = self.kept_of
            if self.sparsity is not None or self.scope != "global" or self.schedule != "one-shot":
                raise ValueError(
                    "a pattern says how sparse, where and when: no sparsity, scope or schedule"
                )
            if kept >= of:
                raise ValueError(f"pattern {self.pattern} removes nothing: N must be below M")
        if self.train is None and (self.schedule != "one-shot" or self.scope == "regularised"):
            raise ValueError("it happens while training: name train")
        if self.scope == "regularised" and self.schedule != "one-shot":
            raise ValueError("regularised training has a schedule of its own: name none")
        return self

    @property
    def kept_of(self) -> tuple[int, int]:
        """N and M of the pattern."""
        kept, _, of = (self.pattern or "").partition(":")
        return int(kept), int(of)


class Structured(Method):
    """Whole channels, attention heads and hidden neurons removed: smaller dense kernels.

    Args:
        budget: what may remain.
        saliency: which groups go first: by ``magnitude`` of their weights, or by ``taylor``: how
            much the loss is expected to change without them.
        allocation: the same share everywhere (``uniform``), by ranking ``global``-ly, or
            ``layer-adaptive``: by measured distortion, against the budget's cost.
        round_to: widths are multiples of it; ``device``: of what the device was measured to like.
        how: prune and then train; or ``hesso``: drive groups to zero while training.
        train, distil: fine-tuning.
    """

    method: Literal["structured"]
    budget: Budget = Budget(macs=0.5)
    saliency: Literal["magnitude", "taylor"] = "magnitude"
    allocation: Literal["uniform", "global", "layer-adaptive"] = "global"
    round_to: Count | Literal["device"] = 8
    how: Literal["prune", "hesso"] = "prune"
    train: Training | None = None
    distil: Distil | None = None

    @model_validator(mode="after")
    def _hesso_trains(self) -> Structured:
        if self.how == "hesso" and self.train is None:
            raise ValueError("hesso happens while training: name train")
        return self


class LowRank(Method):
    """Layers as products of two smaller ones, by their singular values.

    Args:
        budget: what may remain.
        perturb: strength of the weight perturbation while training (PELA); 0 for none.
        train, distil: fine-tuning.
    """

    method: Literal["low-rank"]
    budget: Budget = Budget(parameters=0.5)
    perturb: Annotated[float, Field(ge=0)] = 0.0
    train: Training | None = None
    distil: Distil | None = None


class Shallow(Method):
    """Whole blocks removed where representations change least (CKA).

    Args:
        remove: how many blocks.
        train, distil: fine-tuning.
    """

    method: Literal["remove-layers"]
    remove: Count = 1
    train: Training | None = None
    distil: Distil | None = None


def _short_form(value: Any) -> Any:
    """A bare name is a method with defaults; a method without a name is called after itself."""
    if isinstance(value, str):
        return {"name": value, "method": value}
    if isinstance(value, dict) and not {"name", "method"} & set(value):
        raise ValueError("has no method")
    if isinstance(value, dict) and "method" not in value and "name" in value:
        return {**value, "method": value["name"]}
    if isinstance(value, dict) and "name" not in value and "method" in value:
        return {**value, "name": value["method"]}
    return value


Variant = Annotated[
    Annotated[
        Fp32 | Tuned | Int8 | Weights | Sparse | Structured | LowRank | Shallow,
        Field(discriminator="method"),
    ],
    BeforeValidator(_short_form),
]
#: What ends a chain: nothing works on integers any more.
QUANTIZING = ("int8", "weight-only")


def check_chain(variants: Sequence[Method]) -> None:
    """See that variants have names of their own, and come of those that they name.

    Raises:
        ValueError: if not.
    """
    names = [variant.name for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(f"names must differ: {', '.join(twice)}" if twice else "name one")
    known: dict[str, str] = {}
    lines: dict[str | None, frozenset[str]] = {None: frozenset()}
    for variant in variants:
        if variant.after is not None and variant.after not in known:
            raise ValueError(f"{variant.name}: from: no variant {variant.after!r} before it")
        if known.get(variant.after or "") in QUANTIZING:
            raise ValueError(
                f"{variant.name}: from: {variant.after} is quantized, which comes last in a chain"
            )
        distil: Distil | None = getattr(variant, "distil", None)
        line = lines[variant.after]
        if distil is not None and distil.teacher is not None and distil.teacher not in line:
            raise ValueError(
                f"{variant.name}: distil.teacher: it does not come of {distil.teacher!r} by from"
            )
        known[variant.name] = getattr(variant, "method", "")
        lines[variant.name] = line | {variant.name}
