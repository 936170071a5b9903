"""Places where a bundle runs. One file per kind of device."""
