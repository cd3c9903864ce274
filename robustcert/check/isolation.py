"""The checker's command, started so that nothing in the current folder is executed.

``robustcert-check`` starts itself again in Python's isolated mode (``-I``), which leaves the
current folder and ``PYTHONPATH`` out of the places that modules are imported from. ``python -m``
has already put the current folder there: it is refused if that folder holds Python files.

Until then, this module and the packages above it import only ``sys`` and ``os``, which Python has
loaded before it looks into any folder.
"""

import os
import sys

# The folder of the package, and the one that holds it.
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(PACKAGE)
# Ends of the names of files that a module may be imported from.
SUFFIXES = (".py", ".pyc", ".pyw", ".pyd", ".so", ".zip")
# Program of the isolated process. The folder of this package comes after the places of isolated
# mode, whose modules it must not hide; then comes the name by which the command was called.
START = """
import sys
sys.path.append(sys.argv.pop(1))
sys.argv[0] = sys.argv.pop(1)
from robustcert.check.{module} import main
sys.exit(main(sys.argv[1:]))
"""


def main() -> None:
    """Start the supervised checker on the arguments of this process; never returns."""
    reason = refusal()
    if reason is not None:
        sys.stdout.write(f"UNREADABLE, nothing is verified: {reason}\n")
        sys.exit(2)
    if sys.flags.isolated:
        from robustcert.check.supervisor import main as supervise

        sys.exit(supervise(sys.argv[1:]))
    sys.stdout.flush()
    started = command("supervisor", sys.argv[1:])
    if os.name == "posix":
        os.execv(sys.executable, started)
    # On other systems the caller would not wait for a process that replaces this one.
    import subprocess

    sys.exit(subprocess.call(started))


def command(module: str, arguments: list[str]) -> list[str]:
    """Command line that starts ``main`` of a module of the checker in an isolated process."""
    program = START.format(module=module)
    return [sys.executable, "-I", "-c", program, ROOT, _typed(), *arguments]


def supervised(arguments: list[str]) -> list[str]:
    """Command line that checks a folder, in isolated processes and within the time given."""
    return command("supervisor", arguments)


def refusal() -> str | None:
    """Why ``python -m`` is refused: it could execute files of its folder; None if it is not."""
    if sys.flags.isolated or not _is_module_run():
        return None
    here = os.path.realpath(os.getcwd())
    if here == os.path.realpath(ROOT):
        # The project's own checkout, from which this very module was imported.
        return None
    for entry in sys.path[:1]:
        if os.path.realpath(entry or here) == here:
            name = _first_module(here)
            if name is not None:
                return (
                    f"the current folder holds {name!a}, which 'python -m' could execute: "
                    "use robustcert-check or 'python -I -m robustcert.check'"
                )
    return None


def _typed() -> str:
    """How the user typed the command: what messages on its use begin with."""
    if sys.argv[0] == "robustcert check":
        # An isolated process, to which it has been passed on.
        return sys.argv[0]
    started = [os.path.basename(word).removesuffix(".exe") for word in sys.orig_argv[:3]]
    return "robustcert check" if "robustcert" in started else "robustcert-check"


def _is_module_run() -> bool:
    # 'python -m' gives the main module a specification; a script has none.
    return getattr(sys.modules.get("__main__"), "__spec__", None) is not None


def _first_module(folder: str) -> str | None:
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.endswith(SUFFIXES):
            return name
        if name.isidentifier() and os.path.isdir(path) and _holds_modules(path):
            return name
    return None


def _holds_modules(folder: str) -> bool:
    try:
        return any(name.endswith(SUFFIXES) for name in os.listdir(folder))
    except OSError:
        return True
