"""The help of a command with many options, grouped by what they are for."""

from typing import Any

from typer.core import TyperCommand


class GroupedHelp(TyperCommand):
    """Options that name a `rich_help_panel` stand under that heading, behind all others."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options group by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if line := parameter.get_help_record(ctx):
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(line)

        for heading, lines in groups.items():
            with formatter.section(heading):
                formatter.write_dl(lines)
