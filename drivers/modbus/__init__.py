"""Modbus drivers on pymodbus framers and PDUs."""
