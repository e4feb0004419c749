"""Expectations that Great Expectations does not have. Importing this module makes them known to it, Data Docs included."""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnAggregateExpectation, render_suite_parameter_string
from great_expectations.expectations.metrics.column_aggregate_metric_provider import (
    ColumnAggregateMetricProvider,
    column_aggregate_value,
)
from great_expectations.render import LegacyRendererType, RenderedStringTemplateContent
from great_expectations.render.renderer.renderer import renderer

from tasks.data.statistics import wilson


class MarkedRows(ColumnAggregateMetricProvider):
    """How many rows a column of flags marks. The sum that comes with Great Expectations looks at every value in Python."""

    metric_name = "column.marked_rows"

    @column_aggregate_value(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **kwargs: Any) -> int:
        return int(column.to_numpy().sum())


class ExpectMarkedRowsToBeAtMost(ColumnAggregateExpectation):
    """Expect a column of flags to mark at most so many rows: a number that no share of a million rows can round away."""

    max_value: int

    metric_dependencies = ("column.marked_rows",)
    success_keys: ClassVar[tuple[str, ...]] = ("max_value",)

    def _validate(self, metrics: dict[str, Any], runtime_configuration: Any = None, execution_engine: Any = None) -> dict[str, Any]:
        marked = int(metrics["column.marked_rows"])
        return {"success": marked <= self.max_value, "result": {"observed_value": marked}}

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)
    @render_suite_parameter_string
    def _prescriptive_renderer(cls, configuration: Any, result: Any = None, runtime_configuration: Any = None, **kwargs: Any) -> Any:
        return _sentence("at most $max_value rows may be marked.", configuration)


class ExpectShareToBePlausiblyBetween(ColumnAggregateExpectation):
    """Expect the share of rows with 1 to lie between two bounds, as far as so few rows can tell.

    It fails only where the whole Wilson interval of the share lies outside, so that a handful of rows trips nothing.
    Missing values don't count.
    """

    min_value: float
    max_value: float
    confidence: float = 0.99

    metric_dependencies = ("column.mean", "column.non_null_count")
    success_keys: ClassVar[tuple[str, ...]] = ("min_value", "max_value", "confidence")

    def _validate(self, metrics: dict[str, Any], runtime_configuration: Any = None, execution_engine: Any = None) -> dict[str, Any]:
        share, rows = float(metrics["column.mean"]), int(metrics["column.non_null_count"])
        low, high = wilson(share * rows, rows, self.confidence)
        return {"success": low <= self.max_value and high >= self.min_value, "result": {"observed_value": share}}

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)
    @render_suite_parameter_string
    def _prescriptive_renderer(cls, configuration: Any, result: Any = None, runtime_configuration: Any = None, **kwargs: Any) -> Any:
        return _sentence("share must be between $min_value and $max_value, or its interval ($confidence) must reach there.", configuration)


def _sentence(template: str, configuration: Any) -> list[RenderedStringTemplateContent]:
    """What Data Docs say of an expectation, below the column's name."""
    params = {"confidence": 0.99} | dict(configuration.kwargs)
    content = {"template": template, "params": params}
    return [RenderedStringTemplateContent(content_block_type="string_template", string_template=content)]
