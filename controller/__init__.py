"""Linewright: the control layer of one physical production line."""
