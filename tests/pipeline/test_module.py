"""A program as a module of standard layers: it computes the same, learns as well, and goes back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from pipeline.compress.module import module_of, open_program_of, program_of
from pipeline.examples.resnet20 import ResNet20
from pipeline.training import torch_threads
from profiles.errors import ModelError
from tests.pipeline.networks import MobileLike, VitLike, image, settled


class Named(nn.Module):
    """As the model stage names a user's model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with torch_threads(1):
        yield


def exported(model: nn.Module, example: torch.Tensor) -> ExportedProgram:
    return open_program_of(Named(model), example)


MODELS = {"mobile": MobileLike, "vit": VitLike, "resnet": ResNet20}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, ExportedProgram]:
    """A user's model, and its program of open batch size with weights of its own."""
    torch.manual_seed(0)
    model = settled(MODELS[request.param]())
    return model, exported(copy.deepcopy(model), torch.from_numpy(image(count=2)))


def own(program: ExportedProgram) -> nn.Module:
    """Its module with weights and statistics of its own, to be trained."""
    module = module_of(program)
    for layer in module.modules():
        for name, value in layer._parameters.items():
            if value is not None:
                layer._parameters[name] = nn.Parameter(value.detach().clone())
        for name, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[name] = buffer.clone()
    return module


def outputs(module: Any, count: int, seed: int = 4) -> torch.Tensor:
    with torch.no_grad():
        return module(torch.from_numpy(image(count=count, seed=seed)))


def layers(module: nn.Module) -> dict[str, type]:
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.Dropout)
    return {
        path: next(kind for kind in kinds if isinstance(layer, kind))
        for path, layer in module.named_modules()
        if isinstance(layer, kinds)
    }


@pytest.mark.parametrize("count", [1, 3])
def test_it_computes_what_the_program_does_for_any_batch(pair: Any, count: int):
    model, program = pair
    module = module_of(program)
    assert not module.training
    torch.testing.assert_close(outputs(module, count), outputs(model, count), atol=1e-5, rtol=1e-4)


def test_layers_have_the_users_paths_and_settings(pair: Any):
    model, program = pair
    module = module_of(program)
    found, expected = layers(module), layers(Named(model))
    dropouts = {path for path, kind in expected.items() if kind is nn.Dropout}
    assert {p: kind for p, kind in found.items() if kind is not nn.Dropout} == {
        p: kind for p, kind in expected.items() if p not in dropouts
    }
    assert list(found.values()).count(nn.Dropout) == len(dropouts)
    for path, kind in found.items():
        mine, theirs = module.get_submodule(path), Named(model)
        if kind is nn.Conv2d:
            other = theirs.get_submodule(path)
            for name in ("stride", "padding", "dilation", "groups", "in_channels", "out_channels"):
                assert getattr(mine, name) == getattr(other, name), (path, name)


def test_all_parameters_are_the_models_learnable_and_counted_once(pair: Any):
    model, program = pair
    module = module_of(program)
    mine, theirs = dict(module.named_parameters()), dict(Named(model).named_parameters())
    assert set(mine) == set(theirs)
    for name, parameter in mine.items():
        assert parameter.requires_grad
        assert torch.equal(parameter, theirs[name])


@pytest.mark.parametrize("pair", ["resnet", "vit"], indirect=True)  # no dropout: no dice
def test_it_learns_as_the_users_model_does(pair: Any):
    model, program = pair
    mine, theirs = own(program).train(), copy.deepcopy(Named(model)).train()
    x = torch.from_numpy(image(count=6, seed=2))
    for module in (mine, theirs):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        module(x).square().mean().backward()
        optimiser.step()
    values = dict(theirs.state_dict())
    for name, value in mine.state_dict().items():
        if name in values and "num_batches" not in name:
            torch.testing.assert_close(value, values[name], atol=1e-4, rtol=1e-3)
    moved = [n for n in values if "running_mean" in n or n.endswith("weight")]
    assert all(n in mine.state_dict() for n in moved)


@pytest.mark.parametrize("pair", ["mobile"], indirect=True)
def test_train_and_eval_switch_dropout_and_batch_norm(pair: Any):
    _, program = pair
    module = own(program)
    evaluated = outputs(module, 4)
    mean = module.get_submodule("model.features.0.1").running_mean.clone()
    torch.manual_seed(0)
    module.train()
    one, two = outputs(module, 4), outputs(module, 4)
    assert not torch.equal(one, two)  # dropout throws dice
    assert not torch.equal(module.get_submodule("model.features.0.1").running_mean, mean)
    module.eval()
    assert torch.equal(outputs(module, 4), outputs(module, 4))
    assert not torch.equal(outputs(module, 4), evaluated)  # by its new statistics


def test_it_goes_back_to_a_program_of_one_batch_size_and_of_any(pair: Any):
    model, program = pair
    module = module_of(program)
    example = torch.from_numpy(image(count=1))
    fixed, open_ = program_of(module, example), open_program_of(module, example)
    torch.testing.assert_close(outputs(fixed.module(), 1), outputs(model, 1), atol=1e-5, rtol=1e-4)
    for count in (1, 5):
        found = outputs(open_.module(check_guards=False), count)
        torch.testing.assert_close(found, outputs(model, count), atol=1e-5, rtol=1e-4)
    with pytest.raises(Exception, match=r"(?i)shape|size|expected"):
        outputs(fixed.module(), 2)


def stacks(program: ExportedProgram) -> set[str]:
    """Paths of the modules that the program's operators come from."""
    found = set()
    for node in program.graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            found.add(path.removeprefix("L['self']").removeprefix(".").removeprefix("module."))
    return found


def test_the_structure_of_blocks_survives_both_ways(pair: Any):
    _, program = pair
    before = {path for path in stacks(program) if path.count(".") >= 1}
    again = open_program_of(module_of(program), torch.from_numpy(image(count=2)))
    assert before
    assert before <= stacks(again)


def test_what_changes_in_a_layer_is_in_the_program():
    torch.manual_seed(0)
    example = torch.from_numpy(image(count=2))
    module = module_of(exported(settled(VitLike()), example))
    head = module.get_submodule("model.head")
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.arange(10.0))
    program = program_of(module, example[:1])
    assert torch.equal(outputs(program.module(), 1)[0], torch.arange(10.0))


def test_layers_may_become_smaller():
    torch.manual_seed(0)
    example = torch.from_numpy(image(count=2))
    module = module_of(exported(settled(VitLike()), example))
    block = "model.blocks.0.mlp"
    wide, narrow = module.get_submodule(f"{block}.0"), module.get_submodule(f"{block}.2")
    first, second = nn.Linear(wide.in_features, 5), nn.Linear(5, narrow.out_features)
    module.get_submodule(block)._modules.update({"0": first, "2": second})
    program = open_program_of(module, example)
    assert tuple(program.state_dict[f"{block}.0.weight"].shape) == (5, 32)
    assert outputs(program.module(check_guards=False), 3).shape == (3, 10)


def test_layers_that_no_longer_fit_together_are_one_line():
    example = torch.from_numpy(image(count=2))
    module = module_of(exported(settled(VitLike()), example))
    module.get_submodule("model")._modules["head"] = nn.Linear(7, 10)
    with pytest.raises(ModelError) as caught:
        program_of(module, example[:1])
    assert caught.value.message.startswith("torch.export cannot capture the model: ")
    assert "\n" not in caught.value.message


# -- what layers can be


def same(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """The module of a model's program, once it is seen to compute the same."""
    module = module_of(exported(model.eval(), example))
    with torch.no_grad():
        torch.testing.assert_close(module(example), model(example), atol=1e-5, rtol=1e-4)
    return module


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (
            nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 1), groups=2),
            (4, 9, 8),
        ),
        (nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=False), (4, 9, 8)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
        (nn.Conv1d(4, 6, 3, padding="valid"), (4, 9)),
        (nn.Linear(8, 3, bias=False), (5, 8)),
        (nn.BatchNorm1d(4), (4, 9)),
        (nn.BatchNorm2d(4, affine=False, eps=1e-3, momentum=0.3), (4, 5, 5)),
        (nn.BatchNorm3d(4), (4, 3, 3, 3)),
        (nn.LayerNorm((5, 8), eps=1e-3), (5, 8)),
        (nn.LayerNorm(8, bias=False), (5, 8)),
    ],
)
def test_every_kind_of_layer_comes_back_as_itself(layer: nn.Module, shape: tuple[int, ...]):
    torch.manual_seed(0)
    example = torch.randn(3, *shape)
    layer.train()
    with torch.no_grad():
        layer(example * 2 + 1)
    module = same(layer, example)
    found = module.get_submodule("model")
    kind = nn.BatchNorm2d if isinstance(layer, nn.modules.batchnorm._BatchNorm) else type(layer)
    assert isinstance(found, kind)
    for name in ("eps", "momentum", "groups", "stride"):
        if hasattr(layer, name):
            assert getattr(found, name) == getattr(layer, name)


def test_a_layer_without_parameters_goes_by_its_operators_name():
    module = same(nn.LayerNorm(8, elementwise_affine=False, eps=1e-3), torch.randn(3, 5, 8))
    found = module.get_submodule("layer_norm")
    assert isinstance(found, nn.LayerNorm)
    assert (found.normalized_shape, found.eps) == ((8,), 1e-3)


def test_a_layer_that_is_called_twice_stays_one():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x).relu())

    module = same(Twice(), torch.randn(3, 4))
    assert [path for path, m in module.named_modules() if isinstance(m, nn.Linear)] == [
        "model.layer"
    ]


def test_layers_that_share_a_weight_share_it_still():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).relu())

    example = torch.randn(3, 4)
    module = same(Tied(), example)
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 2
    assert linear[0].weight is linear[1].weight
    assert sum(parameter.numel() for parameter in module.parameters()) == 16 + 4 + 4
    again = module_of(open_program_of(module, example))
    assert sum(parameter.numel() for parameter in again.parameters()) == 16 + 4 + 4


def test_a_weight_that_is_computed_stays_computed():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 4))
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight * self.scale)

    module = same(Scaled(), torch.randn(3, 4))
    assert set(dict(module.named_parameters())) == {"model.weight", "model.scale"}
    module(torch.randn(2, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_what_no_operator_reads_is_forgotten():
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 1000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    module = same(Wasteful(), torch.randn(3, 4))
    assert sum(parameter.numel() for parameter in module.parameters()) == 10


def test_a_model_with_a_batch_size_of_its_own_is_refused_in_one_line():
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(2, 4)

    with pytest.raises(ModelError, match=r"torch\.export cannot capture the model") as caught:
        exported(Fixed(), torch.randn(2, 4))
    assert "\n" not in caught.value.message
