"""What a machine says of its state and of its energy: files as Linux has them on boards that are not here."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from toolkit.bench import conditions, energy

# As they read on a Raspberry Pi 5 with a weak power supply, and on a Jetson Orin Nano.
PI = {
    "proc/loadavg": "0.52 0.31 0.18 2/214 1873\n",
    "proc/pressure/cpu": "some avg10=1.25 avg60=0.40 avg300=0.11 total=90123\nfull avg10=0.00 avg60=0.00 total=0\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "81250\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "4\n",
    "sys/class/thermal/cooling_device0/max_state": "4\n",
}
JETSON = {
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "729600\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "52156\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "50437\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/max_state": "12\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr1_input": "1200\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr2_input": "300\n",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon1/in7_input": "12\n",
}
LAPTOP = {
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
    "sys/firmware/acpi/platform_profile": "balanced\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "1\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/BAT0/voltage_now": "12000000\n",
    "sys/class/power_supply/BAT0/current_now": "-1500000\n",
    "sys/class/power_supply/AC/type": "Mains\n",
}


def root_of(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_a_board_with_a_weak_supply_says_so(tmp_path: Path) -> None:
    found = conditions.now(root_of(tmp_path, PI))
    assert found == {
        "load_average": [0.52, 0.31, 0.18],
        "governors": ["ondemand"],
        "clock_mhz": [1500],
        "clock_limit_mhz": [2400],
        "temperature_c": {"cpu-thermal": 81.25},
        # bits 0 and 2 now, 16 and 18 since it was started; a fan holds nothing back
        "throttled": {"now": ["under-voltage", "throttled"], "since_boot": ["under-voltage", "throttled"]},
        "power_mode": None,
        "pressure_cpu_percent": 1.25,
    }


def test_clusters_and_cooling_devices_of_a_jetson(tmp_path: Path) -> None:
    root = root_of(tmp_path, JETSON)
    tool = root / "usr/sbin/nvpmodel"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n")
    tool.chmod(0o755)
    found = conditions.now(root)
    assert found["clock_mhz"] == [1510, 730]
    assert found["temperature_c"] == {"cpu-thermal": 52.156, "gpu-thermal": 50.437}
    assert found["throttled"] == {"cooling": {"cpufreq-cpu0": 0.25}}
    assert found["power_mode"] == "MAXN_SUPER"


def test_throttle_counts_of_cores_are_added(tmp_path: Path) -> None:
    found = conditions.now(root_of(tmp_path, LAPTOP))
    assert (found["throttled"], found["power_mode"]) == ({"thermal_events": 7}, "balanced")


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert set(conditions.now(tmp_path).values()) == {None}
    assert energy.find(tmp_path) == [] or all(meter.name.startswith("NVML") for meter in energy.find(tmp_path))


def stat(name: str, ticks: int) -> str:
    return f"7 ({name}) R 1 7 7 0 -1 4194304 100 0 0 0 {ticks - 5} 5 0 0 20 0 1 0 100 1000 50 0 0\n"


def test_who_else_takes_processor_time(tmp_path: Path) -> None:
    files = {"proc/7/stat": stat("make (all)", 100), "proc/8/stat": stat("sshd", 50), "proc/9/stat": stat("own", 50)}
    root = root_of(tmp_path, {**files, "proc/stat": "cpu  1 2 3 4 5 6 7 100 0 0\n"})
    others = conditions.Others(root)
    much = 10**6  # ticks in next to no time: more than a tenth of a core
    root_of(root, {"proc/7/stat": stat("make (all)", much), "proc/9/stat": stat("own", much)})
    root_of(root, {"proc/10/stat": stat("new", much), "proc/stat": "cpu  1 2 3 4 5 6 7 100 0 0\n"})
    found = others.read({9})
    assert {each["name"] for each in found["heavy_processes"]} == {"make (all)", "new"}
    assert found["stolen_cores"] == 0


def test_a_counter_of_joules_that_wraps_around(tmp_path: Path) -> None:
    root = root_of(tmp_path, {name: content for name, content in LAPTOP.items() if "rapl" in name})
    (meter,) = [meter for meter in energy.find(root) if meter.name.startswith("RAPL")]  # the package, not its parts
    assert meter.name == "RAPL package-0"
    before = meter.read()
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("671149\n")
    assert meter.read() - before == pytest.approx(1.0)  # 328850 µJ up to the end, one step, 671149 µJ


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_watts_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(energy, "time", clock)
    root = root_of(tmp_path, {**JETSON, **LAPTOP})
    threads = threading.active_count()
    meters = {meter.name: meter for meter in energy.find(root)}
    assert threading.active_count() == threads + 3
    clock.now += 2.0  # at 6 W, 1.5 W and 18 W
    expected = {"INA3221 VDD_IN": 12.0, "INA3221 VDD_CPU_GPU_CV": 3.0, "battery BAT0": 36.0}
    for name, joules in expected.items():
        assert meters[name].read() == pytest.approx(joules)
    for meter in meters.values():
        meter.close()
    assert threading.active_count() == threads


def test_what_may_not_be_read_is_no_meter(tmp_path: Path) -> None:
    files = dict(LAPTOP)
    del files["sys/class/powercap/intel-rapl:0/energy_uj"]  # as for a user who is not root
    files["sys/class/power_supply/BAT0/status"] = "Charging\n"
    found = [meter.name for meter in energy.find(root_of(tmp_path, files))]
    assert [name for name in found if not name.startswith("NVML")] == []
