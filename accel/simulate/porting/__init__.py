"""The porting report: what a program does that an Ascend refuses, does on the CPU or waits for.

`accel simulate --report FILE` or `Machine(report=FILE)` turns it on; without, nothing is installed.
`observation` hangs hooks on torch_npu's operators, `collector` counts per process, `parts` brings
the processes of a run together, `text` and `page` show the result.
"""
