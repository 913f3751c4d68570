"""OPC UA client driver on asyncua."""
