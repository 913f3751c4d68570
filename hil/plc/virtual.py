"""One virtual PLC: memory, program, power."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from hil.plant import Agenda
from hil.plc.memory import IllegalAddress, ModbusMemory, NodeMemory, PlcOffline, Setter
from hil.plc.points import Point, Value

LOOK_NS = 100_000_000
"""Analog values are computed at most once per this much plant time."""


class Program(Protocol):
    """What runs in a PLC."""

    def power_up(self) -> None:
        """Start with zeroed memory; retained counters are the program's own."""

    def power_down(self) -> None:
        """Outputs drop: every drive stops."""

    def written(self, point: str) -> None:
        """A client wrote this point."""

    def look(self) -> None:
        """Somebody reads: bring values that move by themselves up to date."""


class VirtualPlc:
    """A PLC as the network sees it; see :mod:`hil.plc` for the calls and their errors."""

    def __init__(self, name: str, points: Sequence[Point], agenda: Agenda) -> None:
        self.name = name
        self.points: Mapping[str, Point] = {p.name: p for p in points}
        kinds = {p.area == "ua" for p in points}
        if len(kinds) != 1:
            raise ValueError(f"{name}: a PLC speaks either Modbus or OPC UA; its register list has both")
        self.protocol: Literal["modbus", "opcua"] = "opcua" if kinds.pop() else "modbus"
        self._modbus = ModbusMemory(name, points) if self.protocol == "modbus" else None
        self._nodes = NodeMemory(name, points) if self.protocol == "opcua" else None
        self._agenda = agenda
        self._program: Program | None = None
        self._looked = -1
        self.alive = False
        self.boot_count = 0
        self.on_power: list[Callable[[bool], None]] = []
        """Called with the new state after each change of power."""

    # ---- power

    def attach(self, program: Program) -> None:
        """Load the program and switch the PLC on for the first time."""
        self._program = program
        self.restart()

    def kill(self) -> None:
        """Cut the power: outputs drop, the network goes dead. Does nothing when already off."""
        if not self.alive:
            return
        self.alive = False
        if self._program is not None:
            self._program.power_down()
        for tell in self.on_power:
            tell(False)

    def restart(self) -> None:
        """Power up (after a :meth:`kill` when running): registers zeroed, ``boot_count`` one higher."""
        self.kill()
        self.boot_count += 1
        self._memory.clear()
        self._looked = -1
        self.alive = True
        if self._program is not None:
            self._program.power_up()
        for tell in self.on_power:
            tell(True)

    # ---- the network's side

    def read_registers(self, area: str, offset: int, count: int) -> bytes:
        """Input or holding registers, two bytes each."""
        memory = self._look_modbus()
        return memory.read_registers(area, offset, count)

    def read_bits(self, area: str, offset: int, count: int) -> bytes:
        """Coils or discrete inputs, packed."""
        memory = self._look_modbus()
        return memory.read_bits(area, offset, count)

    def write_registers(self, offset: int, data: bytes) -> None:
        """Write holding registers (big-endian words); all or nothing."""
        self._written(self._look_modbus().write_registers(offset, data))

    def write_bits(self, offset: int, values: Sequence[bool]) -> None:
        """Write coils; all or nothing."""
        self._written(self._look_modbus().write_bits(offset, values))

    def read_nodes(self, node_ids: Sequence[str]) -> list[Value]:
        """Values of OPC UA nodes."""
        return self._look_nodes().read(node_ids)

    def write_node(self, node_id: str, value: Value) -> None:
        """Write one OPC UA node."""
        self._written(self._look_nodes().write(node_id, value))

    def version(self, area: str, offset: int | None = None) -> int:
        """Counter that rises with every change in the area (or in the block of addresses around ``offset``)."""
        self._look()
        return self._memory.version(area, offset)

    def watch(self, area: str, offset: int) -> tuple[Sequence[int], int]:
        """A live list of block versions and the place of ``offset``'s block in it, for a reader in this process.

        Modbus only. Call :meth:`look` before looking into it. Raises :class:`IllegalAddress`.
        """
        return self._look_modbus().watch(area, offset)

    def look(self) -> None:
        """Have the program show its analog values for the present. Raises :class:`PlcOffline`."""
        self._look()

    # ---- by point

    def get(self, point: str) -> Value:
        """A point's value in engineering units, as a client would see it."""
        found = self._point(point)
        self._look()
        return found.value(self._memory.get(found))

    def set(self, point: str, value: Value) -> None:
        """Write a point in engineering units, as a client would."""
        found = self._point(point)
        if found.area == "ua":
            self.write_node(found.node_id, found.raw(value))
        elif found.area == "co":
            self.write_bits(found.offset, (bool(found.raw(value)),))
        elif found.area == "hr":
            self.write_registers(found.offset, found.encode(found.raw(value)))
        else:
            raise IllegalAddress(f"{self.name}: {point} is read-only")

    # ---- the program's side

    def setter(self, point: str) -> Setter:
        """The function by which the program shows a value of this point."""
        return self._memory.setter(self._point(point))

    def peek(self, point: str) -> Value:
        """A point's value in engineering units, without asking the program to look."""
        found = self._point(point)
        return found.value(self._memory.get(found))

    def digest(self) -> bytes:
        """All of the memory, for hashing; empty when the PLC is off."""
        if not self.alive:
            return b""
        self._look()
        return self._memory.digest()

    @property
    def _memory(self) -> ModbusMemory | NodeMemory:
        memory = self._modbus or self._nodes
        assert memory is not None
        return memory

    def _point(self, name: str) -> Point:
        try:
            return self.points[name]
        except KeyError:
            raise IllegalAddress(f"{self.name} has no point {name!r}") from None

    def _look(self) -> None:
        if not self.alive:
            raise PlcOffline(f"{self.name} has no power")
        tick = self._agenda.now // LOOK_NS
        if tick != self._looked:
            self._looked = tick
            if self._program is not None:
                self._program.look()

    def _look_modbus(self) -> ModbusMemory:
        self._look()
        if self._modbus is None:
            raise IllegalAddress(f"{self.name} speaks OPC UA, not Modbus")
        return self._modbus

    def _look_nodes(self) -> NodeMemory:
        self._look()
        if self._nodes is None:
            raise IllegalAddress(f"{self.name} speaks Modbus, not OPC UA")
        return self._nodes

    def _written(self, points: Sequence[Point]) -> None:
        if self._program is not None:
            for point in points:
                self._program.written(point.name)
