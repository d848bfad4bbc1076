"""All cases of the truth table."""

from tests.policy import fields, hosts, kubernetes, scenarios

CASES = [*scenarios.cases(), *kubernetes.cases(), *hosts.cases(), *fields.cases()]
