"""How operators run on the simulated Ascend: on the CPU, on views of the device's memory."""
