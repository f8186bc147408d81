"""`--distributed`: one run by several processes, on one machine or many."""

import argparse

from mijax._errors import ConfigError

_ADDRESS = ("coordinator", "processes", "process")


def add_distributed_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the processes of one run need to find each other."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="be one of several processes of this run; SLURM, Open MPI, Kubernetes and "
        "TPU pods are detected, elsewhere give the three options below",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="with --distributed: address of the first process",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="with --distributed: number of processes",
    )
    parser.add_argument(
        "--process",
        type=int,
        metavar="I",
        help="with --distributed: number of this process, starting at 0",
    )


def join(arguments: argparse.Namespace) -> bool:
    """Meet the other processes, if there are any.

    Args:
        arguments: what the command was given.

    Returns:
        Whether this process is the one that writes and prints.

    Raises:
        ConfigError: addresses without `--distributed`, some of the three missing, or
            no cluster found.
    """
    given = {name: getattr(arguments, name) for name in _ADDRESS}
    missing = [name for name, value in given.items() if value is None]
    if not arguments.distributed:
        if len(missing) < len(given):
            raise ConfigError("give --distributed with the address of the processes.")
        return True
    if missing and len(missing) < len(given):
        raise ConfigError(f"--{missing[0]} is missing: give all of {_words()}.")
    import jax  # noqa: PLC0415  (`mijax --help` must not wait for it)

    try:
        jax.distributed.initialize(
            coordinator_address=given["coordinator"],
            num_processes=given["processes"],
            process_id=given["process"],
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the processes did not find each other ({reason:.200}): give {_words()}."
        ) from error
    return jax.process_index() == 0


def _words() -> str:
    return ", ".join(f"--{name}" for name in _ADDRESS)
