"""The `finetune` command, which says so where another package of that name overwrote parts of this one."""

import sys


def main() -> int:
    """The console script; returns the exit code."""
    try:
        from finetune.version import mixed_packages
    except ImportError:
        print(
            "refused: the folder of finetune holds another package's files; `pip uninstall -y finetune freeze-depth`, "
            "then install freeze-depth again",
            file=sys.stderr,
        )
        return 2

    mixed = mixed_packages()
    try:
        from finetune.cli import main as command
    except ImportError:
        if not mixed:
            raise
        print(f"refused: {mixed}", file=sys.stderr)
        return 2

    if mixed:
        print(f"warning: {mixed}", file=sys.stderr)
    return command()


if __name__ == "__main__":
    sys.exit(main())
