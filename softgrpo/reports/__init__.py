"""Reports: records and logs to tables and pictures. A leaf without torch."""

from softgrpo.reports.curves import draw_curves, read_logs, read_metrics
from softgrpo.reports.paper import paper_rows
from softgrpo.reports.tables import Style, cell, format_table, interval

__all__ = [
    "Style",
    "cell",
    "draw_curves",
    "format_table",
    "interval",
    "paper_rows",
    "read_logs",
    "read_metrics",
]
