"""The fault zoo: kernels with known faults, right kernels that round otherwise, rules to judge.

Which rule names the faulty operator first, and how often does it accuse a right one? Run it as
`python benchmarks/fault_zoo`; docs/fault-zoo.md explains and shows what was found.
"""
