"""Arrays: one declaration in a tag list, many tags one behind the other."""

from __future__ import annotations

from collections.abc import Iterator

from controller.config.address import AddressError, parse_modbus, registers
from controller.config.model import TagModel
from controller.config.tagfile import TAG


class ArrayError(ValueError):
    """An array that cannot be: what is wrong (``str``), and what to do."""

    def __init__(self, what: str, hint: str) -> None:
        self.hint = hint
        super().__init__(what)


def element_names(name: str, count: int) -> Iterator[str]:
    """``group.point_1`` … ``group.point_n``."""
    return (f"{name}_{number}" for number in range(1, count + 1))


def expand(name: str, model: TagModel) -> dict[str, TagModel]:
    """The tags of an array. Registers follow registers, coils coils, and bits the next bit or register.

    An address that cannot be read is left in the elements, to be reported with them. Raises :class:`ArrayError`.
    """
    assert model.array is not None
    names = list(element_names(name, model.array))
    if not TAG.fullmatch(names[-1]):
        raise ArrayError(f"{name}: {names[-1]} is too long for a tag name", "shorten the array's name")
    try:
        first = parse_modbus(model.address)
    except AddressError:
        return {element: model.model_copy(update={"array": None}) for element in names}
    found: dict[str, TagModel] = {}
    width = registers(model.type, model.length)
    for number, element in enumerate(names):
        if first.bit is None:
            offset, bit = first.offset + number * width, ""
        else:
            place = first.offset * 16 + first.bit + number
            offset, bit = place // 16, f".{place % 16}"
        if offset > 65535:
            raise ArrayError(
                f"{name}: {element} would be at {first.area}:{offset}{bit}, behind 65535", "correct array or address"
            )
        found[element] = model.model_copy(update={"array": None, "address": f"{first.area}:{offset}{bit}"})
    return found
