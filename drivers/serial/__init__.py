"""Serial line devices: scanners, scales and printers that speak a line protocol declared in line.yaml."""
