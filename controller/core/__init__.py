"""The pure heart: process image, PackML, sequences, interlocks, alarms, line coordination.

Nothing here awaits, reads a clock, draws a random number or does I/O.
"""
