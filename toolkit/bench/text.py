"""Records as rows and sentences for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.bench.record import ColdStart, ComparisonRecord, Distribution, Record, Value

NOT_AVAILABLE = "not available"
Row = tuple[str, ...]


def rows(record: Record) -> list[tuple[str, str]]:
    """What was measured, a row each: name, value with its 95 % interval."""
    found: list[tuple[str, str]] = []
    if record.latency is not None:
        found += _latency(record, record.latency)
    if record.cold_start is not None:
        resident = record.cold_start.resident
        cold = "files in memory or not" if resident is None else f"{100 * (1 - resident):.0f} % read from the disk"
        found.append((f"cold start, {cold}", _start(record.cold_start)))
    if record.warm_start is not None:
        found.append(("start, files in memory", _start(record.warm_start)))
    if record.memory is not None:
        memory = record.memory
        found.append(("peak memory (RSS)", megabytes(memory.peak_rss_bytes)))
        found.append(
            (
                "running: PSS, private dirty",
                f"{megabytes(memory.running.get('pss_bytes'))}, {megabytes(memory.running.get('private_dirty_bytes'))}",
            )
        )
        found.append(("of it engine and model", megabytes(memory.model_delta_bytes)))
        if memory.gpu_bytes is not None:
            found.append(("GPU memory", megabytes(memory.gpu_bytes)))
    if record.latency is not None:
        found.append(("energy per inference", _energy(record)))
    if record.sustained is not None:
        curve = record.sustained
        after = curve.throttled_after_s
        found += [
            ("first minute, p50", f"{curve.first_minute_ms:.3f} ms"),
            (f"the last fifth of {curve.seconds / 60:.1f} min", f"{curve.steady_ms:.3f} ms, {curve.slowdown:.3f}x"),
            ("slower for good after", f"{after:.0f} s" if after is not None else "never"),
        ]
    if record.instructions is not None:
        total = record.instructions["total"]
        found.append(("instructions", f"{total / 1e6:.3f} M"))
        found += [
            (f"  {name.replace('_', ' ')}", f"{value / 1e6:.3f} M ({100 * value / total:.1f} %)")
            for name, value in record.instructions.items()
            if value and name != "total"
        ]
    found += _told(record)
    found += _microcontroller(record)
    found.append(("bundle's artifact", megabytes(record.bundle.artifact_bytes)))
    if is_virtual(record):
        return [(name.replace("latency", "virtual time"), value.replace(" ms", " virtual ms")) for name, value in found]
    return found


def is_virtual(record: Record) -> bool:
    """Whether its milliseconds are those of a clock that counts instructions."""
    return record.clock.startswith("virtual")


def _told(record: Record) -> list[tuple[str, str]]:
    """What a user's own program said: of some statistics there is no more than a number."""
    told = record.told or {}
    found = [
        (f"{name.removesuffix('_ms').replace('_', ' ')}, as the program says", f"{value:.3f} ms")
        for name, value in told.items()
        if name.endswith("_ms")
    ]
    if "overall_mb" in told:
        found.append(
            ("memory, as the program says", f"{told['overall_mb']:.1f} MB, {told['init_mb']:.1f} after loading")
        )
    return found


def _microcontroller(record: Record) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if record.arena is not None:
        arena = record.arena
        found.append(("arena", f"{arena['total_bytes']} bytes, {arena['tail_bytes']} of them for good"))
    if record.cycles is not None:
        cycles = record.cycles
        used = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in cycles["memory_bytes"].items() if size)
        on_cpu = sum(each["where"] == "cpu" for each in cycles["operators"])
        found += [
            ("cycles, an estimate", f"{cycles['total']} ({cycles['ms']:.3f} ms at {cycles['clock_hz'] / 1e6:g} MHz)"),
            ("memory, an estimate", f"{used} bytes"),
            ("operators on the NPU", f"{len(cycles['operators']) - on_cpu} of {len(cycles['operators'])}"),
        ]
        if on_cpu:
            found.append(("  left out of the estimate", f"{on_cpu} on the CPU"))
    return found


def _latency(record: Record, latency: Distribution) -> list[tuple[str, str]]:
    found = [
        ("latency p50", milliseconds(latency.p50_ms)),
        ("latency p90 / p99", f"{latency.p90_ms.value:.3f} / {latency.p99_ms.value:.3f} ms"),
        ("latency mean (min-max)", f"{latency.mean_ms.value:.3f} ms ({latency.min_ms:.3f}-{latency.max_ms:.3f})"),
    ]
    if record.parts:
        parts = " + ".join(f"{name} {part.p50_ms.value:.3f}" for name, part in record.parts.items())
        found.append(("of it, p50", f"{parts} ms"))
    if record.throughput_per_s is not None:
        found.append(("throughput, one stream", f"{record.throughput_per_s:.1f} per s"))
    if record.noise is not None:
        found.append(("noise floor (against itself)", f"{record.noise.floor_percent:.1f} %"))
    return found


def _start(start: ColdStart) -> str:
    whole = start.process_ms + start.load_ms + start.first_inference_ms
    return (
        f"{whole:.0f} ms: process {start.process_ms:.0f}, load {start.load_ms:.0f}, "
        f"first inference {start.first_inference_ms:.1f}"
    )


def _energy(record: Record) -> str:
    if not record.energy:
        return NOT_AVAILABLE
    return ", ".join(
        f"{each.joules_per_inference * 1e3:.3f} mJ ({each.meter}, {each.watts:.1f} W, idle {each.idle_watts:.1f} W)"
        for each in record.energy
    )


def milliseconds(value: Value) -> str:
    """A time and its interval."""
    return f"{value} ms"


def megabytes(value: int | None) -> str:
    """A size; what is not known is said."""
    if value is None:
        return NOT_AVAILABLE
    return f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"


SWEEP_HEAD = ("threads", "batch", "length", "inference p50", "examples per s")


def sweep_rows(record: Record) -> list[Row]:
    """The points of a sweep, under `SWEEP_HEAD`."""
    return [
        (
            str(point.threads), str(point.batch), str(point.length or "as given"), milliseconds(point.inference.p50_ms),
            f"{point.examples_per_s:.1f}",
        )
        for point in record.sweep or ()
    ]  # fmt: skip


OPERATOR_HEAD = ("operator", "of module", "ran on", "in one inference", "share")


def operator_rows(record: Record, most: int = 15) -> list[Row]:
    """The operators that take longest, under `OPERATOR_HEAD`."""
    found = sorted(record.operators or (), key=lambda each: -each.ms)[:most]
    return [
        (each.kind, each.module or "", each.where or "", f"{each.ms:.4f} ms", f"{100 * each.share:.1f} %")
        for each in found
    ]


TABLE_HEAD = ("device", "", "latency p50", "start", "peak memory", "instructions")


def table_rows(records: Sequence[Record]) -> list[Row]:
    """A row per device, under `TABLE_HEAD`. Every row says whether it was measured."""
    return [
        (
            record.device.address,
            record.kind if record.failure is None else f"{record.kind}, failed",
            _time(record),
            _cold(record),
            _peak(record),
            f"{record.instructions['total'] / 1e6:.3f} M" if record.instructions else "",
        )
        for record in records
    ]


def _time(record: Record) -> str:
    if record.cycles is not None:
        return f"{record.cycles['ms']:.3f} ms, an estimate"
    if record.told is not None:
        return f"{record.told['mean_ms']:.3f} ms, the mean as its program says"
    if record.latency is None:
        return ""
    return f"{record.latency.p50_ms} {'virtual ' if is_virtual(record) else ''}ms"


def _cold(record: Record) -> str:
    said = _start(record.cold_start).partition(":")[0] if record.cold_start else ""
    return said.replace(" ms", " virtual ms") if is_virtual(record) else said


def _peak(record: Record) -> str:
    if record.arena is not None:
        return f"{record.arena['total_bytes']} bytes of arena"
    return megabytes(record.memory.peak_rss_bytes) if record.memory else ""


def title(record: Record) -> str:
    """What the record is of."""
    return f"{record.bundle.name}: {record.bundle.engine} {record.bundle.precision} on {record.device.address}"


def sentence(record: Record) -> str:
    """How it came about."""
    protocol = record.protocol
    examples = f"{protocol.examples} examples ({protocol.examples_from})"
    threads = f"{protocol.threads} thread{'s' if protocol.threads != 1 else ''}"
    same = ""
    if record.answers is not None:
        apart = f"{record.answers['largest_difference']:.1e} apart"
        same = f" Answers here and there: {'the same to the last bit' if record.answers['bit_exact'] else apart}."
    if record.instructions is not None:
        what = "A count of instructions, not a time."
        return f"Emulated on {record.device.title}, {threads}, mean of {examples}. {what}{same}"
    if record.arena is not None:
        by = f" Cycles and memory: {record.cycles['by']}, {record.cycles['system']}." if record.cycles else ""
        return f"{record.arena['by']}, {examples}.{same}{by}"
    runs = ""
    if record.latency is not None:
        runs = f", {record.latency.count} queries in {protocol.rounds} rounds over {examples}"
    if record.told is not None:
        runs = f", {record.told['count']} queries of inputs of its own"
    if protocol.name == "answers":
        runs = f", {examples}, which say nothing of its speed"
    return f"{record.kind.capitalize()} on {record.device.title}, {threads}{runs}.{same}"


COMPARE_HEAD = ("bundle", "latency p50", "ratio of times", "verdict")


def comparison_rows(record: ComparisonRecord) -> list[Row]:
    """A row per bundle, under `COMPARE_HEAD`, and one for the first against itself."""
    found: list[Row] = []
    for number, (bundle, latency) in enumerate(zip(record.bundles, record.latency, strict=False)):
        ratio = record.ratios[number - 1] if number else None
        found.append(
            (
                f"{bundle.name} ({bundle.engine} {bundle.precision})",
                milliseconds(latency.p50_ms),
                f"{ratio.ratio:.3f} ({ratio.low:.3f}-{ratio.high:.3f})" if ratio else "1",
                ratio.verdict if ratio else "what others are held against",
            )
        )
    if record.noise is not None:
        noise = record.noise
        found.append(
            ("the first against itself", "", f"{noise.ratio:.3f} ({noise.low:.3f}-{noise.high:.3f})", "noise floor")
        )
    return found
