"""Where values go and what they are: the questions that most rules ask of a file.

`sinks` follows a value to where it is used; `purpose` sums up what it is for; `is_device`,
`is_device_position` and `is_tensor_or_module` say what an expression is.
"""

from accel.convert.flow.evidence import instance_class as instance_class
from accel.convert.flow.evidence import is_device as is_device
from accel.convert.flow.evidence import is_tensor_or_module as is_tensor_or_module
from accel.convert.flow.evidence import may_be_none as may_be_none
from accel.convert.flow.meaning import Purpose as Purpose
from accel.convert.flow.meaning import purpose as purpose
from accel.convert.flow.positions import device_like as device_like
from accel.convert.flow.positions import is_device_position as is_device_position
from accel.convert.flow.positions import is_device_string as is_device_string
from accel.convert.flow.tracing import Sink as Sink
from accel.convert.flow.tracing import sinks as sinks
