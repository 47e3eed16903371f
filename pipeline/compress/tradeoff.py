"""Which forms of a stretch are worth offering, and what damage each of them does.

A form is anything that tells one way to make the stretch cheaper: what it becomes, how wide it stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Form = TypeVar("Form", bound=Hashable)
POWERS = (0.5, 4.0)  # of the residual that damage may rise with


def undominated(savings: Mapping[Form, float], residuals: Mapping[Form, float]) -> list[Form]:
    """The forms of which no other saves as much with as small a residual."""

    def beaten(form: Form) -> bool:
        own = savings[form], residuals[form]
        return any(
            savings[other] >= own[0] and residuals[other] <= own[1] and (savings[other], residuals[other]) != own
            for other in savings
        )

    return [form for form in savings if not beaten(form)]


def damages(
    forms: Sequence[Form], residuals: Mapping[Form, float], measured: Callable[[Form], float]
) -> dict[Form, float]:
    """Damage of each form: the power of the residual through what two of them were measured to do.

    The two are the most harmful form and the one in the middle; the power is held within `POWERS`, for a small damage
    is measured badly.
    """
    ordered = sorted(forms, key=residuals.__getitem__)
    worst, middle = ordered[-1], ordered[(len(ordered) - 1) // 2]
    most = measured(worst)
    if residuals[middle] >= residuals[worst]:
        return dict.fromkeys(forms, most)
    fall = math.log(max(most, 1e-9) / max(measured(middle), 1e-9))
    rise = math.log(max(residuals[middle] / residuals[worst], 1e-12))
    power = min(max(-fall / rise, POWERS[0]), POWERS[1])
    return {form: most * (residuals[form] / residuals[worst]) ** power for form in forms}
