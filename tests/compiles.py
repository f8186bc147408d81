"""Count the programs that JAX compiles."""

import contextlib

import jax

# Recorded once per new program, whether or not the persistent cache has it.
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@contextlib.contextmanager
def compiles():
    """Yield a list that grows by one with every program that is compiled inside."""
    found = []

    def listen(event, duration, **options):
        if event == LOWERED:
            found.append(options.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
