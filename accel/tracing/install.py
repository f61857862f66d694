"""Puts every replacement in place, once torch is imported."""

from __future__ import annotations

from accel.tracing.amp_calls import install_amp
from accel.tracing.cuda_module import install_cuda
from accel.tracing.distributed_calls import install_distributed, install_fsdp
from accel.tracing.factories import install_factories
from accel.tracing.hook import ImportHook
from accel.tracing.loading_calls import install_loading
from accel.tracing.other_calls import install_others
from accel.tracing.scripting import install_scripting
from accel.tracing.settings import current_settings
from accel.tracing.tensor_types import install_default_tensor_type
from accel.tracing.tensors import install_functional_tensors, install_tensors
from accel.tracing.tracer import Tracer


def install(hook: ImportHook) -> None:
    """Trace this process, as the environment says; nothing if it says nothing."""
    settings = current_settings()
    if settings is None:
        return
    tracer = Tracer(settings)
    install_factories(tracer)
    install_tensors(tracer)
    install_default_tensor_type(tracer)
    install_amp(tracer)
    install_distributed(tracer)
    install_loading(tracer)
    install_others(tracer)
    install_scripting(tracer)
    install_cuda(tracer)
    hook.when_imported("torch.distributed.fsdp", lambda: install_fsdp(tracer))
    functional = "torch._subclasses.functional_tensor"
    hook.when_imported(functional, lambda: install_functional_tensors(tracer))
