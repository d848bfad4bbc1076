"""All cases of the truth table."""

from tests.policy import fields, kubernetes, scenarios

CASES = [*scenarios.cases(), *kubernetes.cases(), *fields.cases()]
