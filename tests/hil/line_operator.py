"""Somebody who works the bottling line by hand, at its PLCs' points alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hil.plc import PlcOffline, Value, VirtualPlc, World

S = 1_000_000_000
MS = 1_000_000
MACHINES = {"infeed": "wet", "filler": "wet", "packer": "wet", "capper": "dry", "labeler": "dry"}
CLEAR, RESET, START, STOP, ABORT, COMPLETE = 9, 1, 2, 3, 8, 10


@dataclass(frozen=True)
class Product:
    rail: float
    target: float
    case: int
    torque: float
    job: str


P330 = Product(62.0, 330.0, 12, 1.8, "WATER-330")
P500 = Product(72.0, 500.0, 6, 2.0, "WATER-500")


class Operator:
    def __init__(self, world: World) -> None:
        self.world = world
        self._command = 0

    def set(self, point: str, value: Value) -> None:
        self.plc(point).set(point, value)

    def get(self, point: str) -> Value:
        return self.plc(point).get(point)

    def wait(self, seconds: float) -> None:
        self.world.advance(self.world.now + round(seconds * S))

    def download(self, product: Product) -> None:
        for name in MACHINES:
            self.set(f"{name}.rail_sp", product.rail)
        self.set("infeed.speed_sp", 0.45)
        self.set("filler.target", product.target)
        self.set("packer.case_size", product.case)
        self.set("capper.torque_sp", product.torque)
        self.set("labeler.job", product.job)
        self.set("checkweigher.limit_low", product.target - 5.0)
        self.set("checkweigher.limit_high", product.target + 7.0)
        self.set("checkweigher.recipe_id", product.job)
        self.wait(3)

    def command(self, number: int) -> int:
        """One PackML command to the checkweigher; returns its CmdResult."""
        self._command += 1
        self.set("checkweigher.cntrl_cmd", number)
        self.set("checkweigher.cmd_valid_until", (int(self.get("inspect.clock")) + 1000) % 2**32)
        self.set("checkweigher.cmd_id", self._command)
        assert self.get("checkweigher.cmd_ack") == self._command
        result = self.get("checkweigher.cmd_result")
        assert isinstance(result, int)
        return result

    def run(self, on: bool = True) -> None:
        self.set("filler.pump", on)
        self.set("capper.feeder", on)
        self.set("labeler.vacuum", on)
        for name in MACHINES:
            self.set(f"{name}.run", on)

    def checkweigher_up(self) -> None:
        for number in (CLEAR, RESET, START):
            if self.get("checkweigher.state_current") != 6:
                self.command(number)
                self.wait(1)

    def start(self, product: Product = P330) -> None:
        """Download, start every station, open the gate."""
        self.download(product)
        self.checkweigher_up()
        self.run()
        self.wait(1)
        self.set("infeed.gate", True)

    def recover(self) -> None:
        """What a person does after a stop: run off, reset, run on, the checkweigher up again."""
        for name in MACHINES:
            if self.plc(f"{name}.run").alive:
                self.set(f"{name}.run", False)
                self.set(f"{name}.reset", False)
                self.set(f"{name}.reset", True)
                self.set(f"{name}.reset", False)
                self.set(f"{name}.run", True)
        if self.world.plcs["inspect"].alive:
            self.checkweigher_up()

    def attempt(self, point: str, value: Value) -> None:
        """Write, whatever becomes of it: a PLC without power does not answer."""
        try:
            self.set(point, value)
        except PlcOffline:
            return

    def plc(self, point: str) -> VirtualPlc:
        group = point.partition(".")[0]
        name = MACHINES.get(group, group if group in self.world.plcs else "inspect")
        return self.world.plcs[name]


def balanced(truth: dict) -> None:  # type: ignore[type-arg]
    """Nothing vanishes and nothing appears."""
    rows = {"line": truth["line"], **truth["stations"], **truth["products"]}
    for name, row in rows.items():
        assert row["infeed"] == row["good"] + row["rejected"] + row["in_process"], (name, row)
        assert min(row.values()) >= 0, (name, row)
    names = list(truth["stations"])
    for up, down in pairwise(names):
        assert truth["stations"][up]["good"] == truth["stations"][down]["infeed"], (up, down)
