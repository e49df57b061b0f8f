"""The battery as this package's own layers have to pass it: with all house rules."""

from __future__ import annotations

import functools

from layers.testing import HOUSE_RULES
from layers.testing import check_layer as check_any_layer

check_layer = functools.partial(check_any_layer, rules=tuple(HOUSE_RULES))
