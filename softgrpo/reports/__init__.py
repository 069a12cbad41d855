"""Reports: records and logs to tables and pictures. A leaf without torch."""

from softgrpo.reports.curves import draw_curves, read_metrics
from softgrpo.reports.tables import before_after_table

__all__ = ["before_after_table", "draw_curves", "read_metrics"]
