"""The command ``robustcert``, and the two commands that earlier console scripts find here.

What a command needs is imported when that command is typed: ``--help`` answers at once, and
``robustcert check`` has imported nothing but ``sys`` and ``os`` when it isolates itself.
"""

import os
import sys

from robustcert import __version__

# Every command: the function that runs it, and what it does.
COMMANDS = {
    "train": ("robustcert.runs.commands:train", "train a network and certify it"),
    "certify": ("robustcert.runs.commands:certify", "certify a trained network again, otherwise"),
    "check": ("robustcert.check.isolation:main", "prove a certificate again, independently"),
    "report": ("robustcert.report.__main__:main", "write pages on a run, or on a sweep"),
    "export": ("robustcert.export.__main__:main", "write a certified network as an ONNX model"),
    "convert": ("robustcert.convert.__main__:main", "read a published checkpoint as a run"),
    "board": ("robustcert.board.__main__:main", "check folders again and compare them on a page"),
    "dashboard": ("robustcert.report.dashboard:main", "save a dashboard in a W&B project"),
    "version": ("", "print the version"),
}
EXAMPLES = """
  robustcert train activation=smooth model.width=256
  robustcert certify outputs/<run> certifier=lipsdp output=lipsdp
  robustcert check outputs/<run>
  robustcert report outputs/<run>
  robustcert export outputs/<run> model.onnx

certify, check, report and export take a run's folder, its certificate or its checkpoint."""


def main() -> None:
    """``robustcert COMMAND ...``: run the command; status 2 if there is none of this name."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command != "check":
        from robustcert.runs.pipes import outlive_readers

        outlive_readers()
    if command in ("-h", "--help", "help"):
        _say(_help())
    elif command in ("version", "--version"):
        _say(f"robustcert {__version__}")
    elif command in COMMANDS:
        # Ranks and workers start this process's script again, with the arguments alone.
        script = os.path.join(os.path.dirname(sys.argv[0]), f"robustcert-{command}")
        name = script if os.path.isfile(script) else sys.argv[0]
        sys.argv = [name, *sys.argv[2:]]
        _run(command)
    else:
        sys.stderr.write(f"error: {_unknown(command)}\n")
        sys.exit(2)


def train() -> None:
    """``robustcert-train``: compose, train, certify."""
    _run("train")


def certify() -> None:
    """``robustcert-certify``: certify a checkpoint."""
    _run("certify")


def _run(command: str) -> None:
    if command == "check":
        sys.argv[1:] = _named(sys.argv[1:])
    else:
        _begin(command)
    module, _, function = COMMANDS[command][0].partition(":")
    # Not by importlib, which Python may have yet to look for.
    __import__(module)
    sys.exit(getattr(sys.modules[module], function)())


def _begin(command: str) -> None:
    """Say at once that the command runs, and make the end of its process quick."""
    import atexit
    import gc

    # What is alive at the exit need not be searched for what is not: with torch, a second of work.
    atexit.register(gc.freeze)
    asked = any(argument in _ANSWERED for argument in sys.argv[1:])
    if command in ("train", "certify") and not asked and "LOCAL_RANK" not in os.environ:
        # Beside what is printed, for Hydra and torch take seconds to load.
        sys.stderr.write(f"robustcert {__version__}: reading the configuration\n")
        sys.stderr.flush()


# Flags whose answer is all that is printed.
_ANSWERED = (
    *("-h", "--help", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"),
    *("-sc", "--shell-completion"),
)


def _named(arguments: list[str]) -> list[str]:
    """The checker's arguments, with the run or the checkpoint replaced by its certificate."""
    from robustcert.certificate.places import only_certificate_of
    from robustcert.errors import NotCertifiedError

    try:
        # Whatever else names a file or a folder is the data to compare with.
        return [a if a.startswith("-") else only_certificate_of(a) for a in arguments]
    except NotCertifiedError as error:
        _say(f"UNREADABLE, nothing is verified: {error}")
        sys.exit(2)


def _help() -> str:
    lines = [f"  {name:<11}{said}" for name, (_, said) in COMMANDS.items()]
    usage = "usage: robustcert COMMAND ...      (robustcert COMMAND --help says more)"
    return "\n".join((usage, "", *lines, EXAMPLES))


def _unknown(command: str) -> str:
    import difflib

    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean robustcert {close[0]}? " if close else ""
    if "=" in command:
        hint = f"did you mean robustcert train {command}? "
    return f"{command}: no such command; {hint}there are {', '.join(COMMANDS)}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
