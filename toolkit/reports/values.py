"""A report as CSV: a row per number, with its interval, its unit and where it comes from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from toolkit.bench.record import Distribution, Record, Value
from toolkit.reports.data import Conversion, Report

HEAD = ("source", "bundle", "device", "kind", "clock", "protocol", "created", "section", "name", "value", "low", "high",
        "unit")  # fmt: skip
Row = tuple[str, str, Any, Any, Any, str]  # section, name, value, low, high, unit


def write(report: Report) -> str:
    """The whole table. What a spreadsheet would take for a formula begins with an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEAD)
    source: tuple[str, ...]
    for record in report.records:
        source = (
            "record", record.bundle.name, record.device.title, record.kind, record.clock, record.protocol.name,
            record.created,
        )  # fmt: skip
        writer.writerows([_safe(cell) for cell in (*source, *row)] for row in _of_record(record))
    for conversion in report.conversions:
        for row, kind in _of_conversion(conversion):
            source = ("conversion", conversion.name, conversion.made_on or "", kind, "", "", "")
            writer.writerows([[_safe(cell) for cell in (*source, *row)]])
    for found in report.sensitivities:
        source = ("sensitivity", found.name, "", "measured", "", found.method, "")
        for layer in found.layers:
            for name, value, unit in (
                ("divergence", layer.divergence, "nats"),
                ("score", layer.score, ""),
                ("saved", layer.bytes_saved, "bytes"),
            ):
                row = ("sensitivity", f"{layer.layer}: {name}", value, None, None, unit)
                writer.writerow([_safe(cell) for cell in (*source, *row)])
    for ratio in report.all_pairs():
        row = ("comparison", f"{ratio.a} / {ratio.b}", ratio.ratio, ratio.low, ratio.high, "ratio")
        writer.writerow([_safe(cell) for cell in ("comparison", "", ratio.where, ratio.kind, "", "", "", *row)])
    for series in report.history:
        for run in series.runs:
            source = ("history", series.name, series.device, series.kind, "", series.how, run.when)
            row = ("history", series.what, run.value, run.low, run.high, series.unit)
            writer.writerow([_safe(cell) for cell in (*source, *row)])
    return stream.getvalue()


def _safe(cell: Any) -> Any:
    if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{cell}"
    return "" if cell is None else cell


def _times(section: str, prefix: str, found: Distribution) -> Iterator[Row]:
    for name in ("mean_ms", "p50_ms", "p90_ms", "p99_ms"):
        value: Value = getattr(found, name)
        yield section, f"{prefix}{name.removesuffix('_ms')}", value.value, value.low, value.high, "ms"
    yield section, f"{prefix}min", found.min_ms, None, None, "ms"
    yield section, f"{prefix}max", found.max_ms, None, None, "ms"
    yield section, f"{prefix}queries", found.count, None, None, "count"


def _of_record(record: Record) -> Iterator[Row]:
    yield "bundle", "artifact", record.bundle.artifact_bytes, None, None, "bytes"
    yield "bundle", record.bundle.score_name or "score", record.bundle.score, None, None, ""
    if record.latency:
        yield from _times("latency", "", record.latency)
    for name, value in (record.told or {}).items():
        if isinstance(value, int | float):
            what, _, unit = name.rpartition("_")
            known = unit in ("ms", "mb")
            yield "told", what if known else name, value, None, None, unit.replace("mb", "MB") if known else ""
    for name, part in record.parts.items():
        yield from _times("parts", f"{name} ", part)
    yield "latency", "throughput", record.throughput_per_s, None, None, "1/s"
    if record.noise:
        yield "noise", "floor", record.noise.floor_percent, None, None, "%"
    for name, start in (("cold", record.cold_start), ("warm", record.warm_start)):
        if start:
            for field in ("process_ms", "load_ms", "first_inference_ms"):
                yield "start", f"{name} {field.removesuffix('_ms')}", getattr(start, field), None, None, "ms"
    if record.memory:
        yield "memory", "peak_rss", record.memory.peak_rss_bytes, None, None, "bytes"
        yield "memory", "model_delta", record.memory.model_delta_bytes, None, None, "bytes"
        yield "memory", "gpu", record.memory.gpu_bytes, None, None, "bytes"
        for name, size in record.memory.running.items():
            yield "memory", f"running {name.removesuffix('_bytes')}", size, None, None, "bytes"
    for meter in record.energy or ():
        yield "energy", f"{meter.meter} per inference", meter.joules_per_inference, None, None, "J"
    for point in record.sweep or ():
        place = f"threads={point.threads} batch={point.batch} length={point.length or 'as given'} "
        yield from _times("sweep", place, point.inference)
        yield "sweep", f"{place}examples", point.examples_per_s, None, None, "1/s"
    for operator in record.operators or ():
        yield "operators", f"{operator.module or ''}:{operator.kind}:{operator.name}", operator.ms, None, None, "ms"
    if record.sustained:
        for window in record.sustained.windows:
            yield "sustained", f"p50 at {window.at_s:g} s", window.p50_ms, None, None, "ms"
            yield "sustained", f"p99 at {window.at_s:g} s", window.p99_ms, None, None, "ms"
            for name, watts in window.watts.items():
                yield "sustained", f"{name} at {window.at_s:g} s", watts, None, None, "W"
    for name, count in (record.instructions or {}).items():
        yield "instructions", name, count, None, None, "instructions"


def _of_conversion(conversion: Conversion) -> Iterator[tuple[Row, str]]:
    for section, points in (
        ("chain", conversion.chain), ("candidates", conversion.candidates), ("tried", conversion.tried),
    ):  # fmt: skip
        for point in points:
            if point.score is not None:
                yield (section, f"{point.name}: {conversion.score_name}", point.score, None, None, ""), "measured"
            if point.size_bytes is not None:
                yield (section, f"{point.name}: size", point.size_bytes, None, None, "bytes"), "measured"
            if point.latency_ms is not None:
                kind = "measured" if point.latency_basis == "measured" else "estimated"
                found = point.latency_ms, point.latency_low_ms, point.latency_high_ms
                yield (section, f"{point.name}: latency", *found, "ms"), kind
    for ratio in conversion.pairs:
        yield ("comparison", f"{ratio.a} / {ratio.b}", ratio.ratio, ratio.low, ratio.high, "ratio"), "measured"
