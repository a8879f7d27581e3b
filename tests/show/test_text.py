"""Numbers and times as short text."""

from __future__ import annotations

from nanoegg_mlx.show.text import duration, quantity, time_unit


def test_quantities_and_units() -> None:
    numbers = (0, 12, 999, 204800, 61.4e6, 20.5e9, 2.6e12)
    assert [quantity(number) for number in numbers] == ["0", "12", "999", "205k", "61.4M", "20.5B", "2.6T"]
    assert [time_unit(seconds)[1] for seconds in (5, 179, 180, 7200, 172800)] == [
        "seconds", "seconds", "minutes", "hours", "days",
    ]  # fmt: skip


def test_durations() -> None:
    times = (0.25, 59.94, 61, 3599, 3600, 7384, 172799, 172800, 200000)
    assert [duration(seconds) for seconds in times] == [
        "0.2 s", "59.9 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "2 h 3 min", "47 h 59 min", "2 d 0 h", "2 d 7 h",
    ]  # fmt: skip
