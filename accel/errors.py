"""What the machine cannot do. What the caller did wrong is a ValueError or a TypeError."""


class DeviceError(RuntimeError):
    """A device is missing, ambiguous or broken; the message names the next step."""


class BackendError(RuntimeError):
    """No kernel, or not the one asked for, can serve a request; the message lists the reasons."""
