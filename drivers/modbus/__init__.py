"""Modbus: strict exchanges over TCP, TLS, UDP and serial lines, with requests encoded by pymodbus."""

from drivers.modbus.driver import ModbusDriver, make_modbus

__all__ = ["ModbusDriver", "make_modbus"]
