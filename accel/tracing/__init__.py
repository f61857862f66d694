"""The tracing shim: CUDA calls of an unchanged program, redirected and counted.

`accel.trace.run_command` starts a program whose Python processes all run
`startup/sitecustomize.py`; that installs an import hook (`hook`), which puts the replacements in
place (`install`) as soon as the program has imported torch. A process that never imports torch is
left alone.
"""
