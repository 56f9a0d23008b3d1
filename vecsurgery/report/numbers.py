"""How a report writes numbers: few digits, never a rounded 100 % that is not one."""


def percent(share: float) -> str:
    """A share as a percentage: whole above ten, more digits where fewer would read 0 % or 100 % falsely.

    >>> percent(0.812), percent(0.9998), percent(0.031), percent(0.0004), percent(1.0)
    ('81 %', '99.98 %', '3.1 %', '0.04 %', '100 %')
    """
    value = 100 * share
    for digits in range(1 if 0 < value < 9.95 else 0, 5):
        shown = f"{value:.{digits}f}"
        if value in (0.0, 100.0) or float(shown) not in (0.0, 100.0):
            return f"{shown} %"
    if value < 50:
        return "< 0.0001 %"
    return "> 99.9999 %" if value < 100 else "100 %"


def number(value: float | None) -> str:
    """Three significant digits; whole numbers below a million as they are; a dash where there is none."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the unit a reader would choose."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def counted(count: int, noun: str) -> str:
    """A count with its noun in the number it needs."""
    if count == 1:
        return f"1 {noun}"
    plural = noun.removesuffix("x") + "ces" if noun.endswith("matrix") else f"{noun}s"
    return f"{count:,} {plural}"
