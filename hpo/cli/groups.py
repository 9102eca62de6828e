"""`hpo --help`: the commands, grouped by purpose."""

import click

GROUPS = {
    "Run": ("new", "schema", "run", "init", "submit", "launch", "worker"),
    "Control": ("stop", "resume", "extend", "try", "exclude", "copy", "rename", "delete", "clean"),
    "Watch": ("status", "watch", "dashboard"),
    "Query": ("best", "top", "pareto", "history", "importances"),
    "Conclude": ("confirm", "report", "export"),
}


class Commands(click.Group):
    """A group whose help lists the commands by GROUPS, in that order."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, names in GROUPS.items():
            width = formatter.width - 6 - max(map(len, self.commands))
            rows = [(name, self.commands[name].get_short_help_str(width)) for name in names]
            with formatter.section(group):
                formatter.write_dl(rows, col_max=14)
