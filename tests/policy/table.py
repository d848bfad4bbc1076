"""All cases of the truth table."""

from tests.policy import fields

CASES = [*fields.cases()]
