"""A simulated Ascend: the real torch_npu, running and computing, with no Ascend hardware.

`activate()` or `accel simulate -- python train.py` loads a stand-in for the CANN runtime under the
unmodified torch-npu package. Device memory, streams, events, generators and collectives are the
package's own, on that runtime; operators compute with torch's CPU kernels, and the vendor's custom
ones with the references of `accel_kernels.vendor`. An operator without an implementation raises and
names itself. Importing this package imports no torch.
"""

from __future__ import annotations

from accel.simulate.activation import activate as activate
from accel.simulate.activation import active as active
from accel.simulate.machine import Machine as Machine
