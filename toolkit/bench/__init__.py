"""Measuring: clocks, statistics, and the child process that a benchmark runs in."""
