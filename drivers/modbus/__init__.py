"""Modbus TCP and RTU: strict exchanges over pymodbus' request PDUs and framers."""

from drivers.modbus.driver import ModbusDriver, ModbusRtuDriver, ModbusTcpDriver

__all__ = ["ModbusDriver", "ModbusRtuDriver", "ModbusTcpDriver"]
