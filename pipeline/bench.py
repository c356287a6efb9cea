"""What a recipe names outside itself: devices and modules, looked up before anything is done."""

from __future__ import annotations

from dataclasses import dataclass

from devices.inventory import Device, load_inventory
from pipeline.stage import source_digest
from profiles.errors import ConfigError, UsageError
from profiles.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Bench:
    """The devices a recipe asks for: to measure its variants on, and to search for."""

    measured: tuple[Device, ...]
    searched: Device


def pick_devices(recipe: Recipe) -> Bench:
    """The recipe's devices, from its inventory; and a look at what else it names.

    Raises:
        UsageError: if the inventory cannot be read.
        ConfigError: lists every device and every module that is not there.
    """
    inventory = load_inventory(recipe.inventory)
    known = {device.id: device for device in inventory.devices}
    search = recipe.search
    wanted = search.device if search and search.device else recipe.devices[0]
    problems = [
        f"{key}: there is no device {name!r} in {recipe.inventory} (known: {', '.join(known)})"
        for key, name in [*(("devices", d) for d in recipe.devices), ("search.device", wanted)]
        if name not in known and (key == "devices" or wanted not in recipe.devices)
    ]
    for number, variant in enumerate(recipe.variants):
        asked = getattr(getattr(variant, "budget", None), "device", None)
        if asked is not None and asked not in recipe.devices:
            measured = ", ".join(recipe.devices)
            problems.append(
                f"variants.{number}.budget.device: {asked!r} is not of devices: {measured}"
            )
    for key, path in (
        ("model.factory", recipe.model.factory),
        ("data.factory", recipe.data.factory),
        ("search.supernet", search.supernet if search else None),
    ):
        try:
            source_digest(path) if path else None
        except UsageError as error:
            problems.append(f"{key}: {error.message}")
    if problems:
        raise ConfigError(recipe.name, problems)
    return Bench(tuple(known[name] for name in recipe.devices), known[wanted])
