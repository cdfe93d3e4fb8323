"""Where the command starts, installed or as `python -m ztunnel`.

Imports the command line only once it is ready for Ctrl-C, which may come while that is still being read.
"""

import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """The entry point of the installed command."""
    try:
        from ztunnel.cli import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
