"""Virtual PLCs: a memory laid out by a register list, a program, and power that can fail.

This is the whole interface between the plant and whoever reads it — the bench's in-process link, the servers
of the wire tier, a test. All calls are synchronous, take effect at ``world.now`` and never block::

    world = World(line="bottling", seed=7)       # plant, PLCs and their wiring, all at time 0
    world.advance(until_ns)                      # simulate up to a time (integer ns since power-up of the line)
    wet = world.plcs["wet"]                      # VirtualPlc

    wet.read_registers("ir", 100, 11) -> bytes   # "ir" | "hr"; 2 bytes per register, as on the wire
    wet.read_bits("di", 16, 10) -> bytes         # "co" | "di"; packed, least significant bit first, as on the wire
    wet.write_registers(100, data)               # holding registers; big-endian words
    wet.write_bits(16, (True,))                  # coils
    plc.read_nodes(("nsu=…;s=…", …)) -> list     # OPC UA memory, by the node ids of registers.csv
    plc.write_node("nsu=…;s=…", value)
    plc.version("ir") -> int                     # rises when anything in the area changes
    plc.version("ir", 100) -> int                # … in the block of addresses that holds ir:100
    plc.get("infeed.speed"), plc.set("infeed.run", True)   # by point, in engineering units, as a client would

    world.inject("jam", station="capper"); world.clear("jam", station="capper"); world.truth()

Version counters let a reader skip what did not change. Analog values are computed when somebody looks (a read
or a version query), at most once per 100 ms of plant time.

Errors: :class:`PlcOffline` when the PLC has no power, :class:`IllegalAddress` (Modbus exception 2,
BadNodeIdUnknown, BadNotWritable) and :class:`IllegalValue` (exception 3, BadTypeMismatch, BadOutOfRange).
"""

from hil.plc.memory import IllegalAddress, IllegalValue, PlcOffline
from hil.plc.points import Point, Value, load_points
from hil.plc.virtual import VirtualPlc
from hil.plc.world import FaultError, World

__all__ = [
    "FaultError",
    "IllegalAddress",
    "IllegalValue",
    "PlcOffline",
    "Point",
    "Value",
    "VirtualPlc",
    "World",
    "load_points",
]
